"""How long work reports itself: a callable that gets a label, how much is done and how much there is (bytes or items)."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(label: str, done: int, total: int) -> None:
    """The progress report of a caller who asked for none."""
