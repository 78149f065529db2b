"""Fuzz one target with atheris, guided by coverage of Hasten's own code.

    python fuzz/run.py body CORPUS -runs=1000000 -max_len=2048

The seeds are written into the folder CORPUS first; libFuzzer's own options follow. It ends with a line of how many cases ran,
or with the input that found a fault, in a file crash-*.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hasten", "jinja2"]):
    from targets import SEEDS, TARGETS


def main(arguments: list[str]) -> None:
    name, corpus = arguments[0], Path(arguments[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[name]():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments[2:], str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
