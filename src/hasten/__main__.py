"""``python -m hasten`` is ``hasten``."""

from __future__ import annotations

from hasten.cli.main import main

if __name__ == "__main__":
    main()
