"""Fuzz one target with atheris, guided by coverage of Hasten's own code.

    python fuzz/run.py body CORPUS -runs=1000000 -max_len=2048

The seeds are written into the folder CORPUS first; libFuzzer's own options follow. It ends with a line of how many cases ran,
or with the input that found a fault, in a file crash-*.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hasten", "jinja2"]):
    from targets import SEEDS, TARGETS
from mutate import mutated_json


def mutated_body(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the cases are changed as JSON, the others byte by byte as libFuzzer does."""
    dice = random.Random(seed)
    changed = mutated_json(data, dice) if dice.random() < 0.5 else data
    if changed == data or len(changed) > max_size:
        return bytes(atheris.Mutate(data, max_size))
    return changed


def main(arguments: list[str]) -> None:
    name, corpus = arguments[0], Path(arguments[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[name]():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = {"custom_mutator": mutated_body} if name == "body" else {}
    atheris.Setup([sys.argv[0], *arguments[2:], str(corpus)], TARGETS[name], **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
