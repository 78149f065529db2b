"""Steps that the roofline predicts beside measured ones, for several models and precisions, each calibrated with five passes.

    python benchmarks/roofline_check.py smollm2-135m:int8 smollm2-135m:bf16 qwen2.5-coder-0.5b:int8

The last line says whether the median error of every one is at most 15 %; the exit status is 1 when it is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import closing
from dataclasses import asdict

from common import machine, read_bandwidth, table
from hasten import LLM
from hasten.bench.roofline import Checked, check, form_of
from hasten.cli.roofline import CHECK_CONTEXTS, CHECK_ROWS
from hasten.engine.profiling import sample_tokens
from hasten.model.catalogue import resolve
from hasten.model.loaders import open_source

MOST = 0.15


def checked(model: str, precision: str) -> list[Checked]:
    """Every row count and context that was not calibrated with."""
    room = max(CHECK_CONTEXTS) + max(CHECK_ROWS)
    form = form_of(precision, open_source(resolve(model, fetch=True).path))
    with closing(LLM(model, draft="none", precision=precision, cache_tokens=2 * room)) as llm:
        text = sample_tokens(llm.engine.tokenizer)
        return check(llm.engine.executor, text, form, read_bandwidth(), CHECK_ROWS, CHECK_CONTEXTS)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL:PRECISION")
    found = {}
    for name in parser.parse_args().models:
        model, _, precision = name.partition(":")
        found[name] = checked(model, precision or "int8")
        for one in found[name]:
            times = f"{1e3 * one.predicted_s:8.2f} ms predicted {1e3 * one.measured_s:8.2f} measured"
            print(f"{name}, context {one.context:4d}, {one.rows:2d} rows: {times}", file=sys.stderr)
    medians = {name: statistics.median(one.error for one in steps) for name, steps in found.items()}
    rows = [
        [name, str(len(steps)), f"{100 * medians[name]:.1f} %", f"{100 * max(one.error for one in steps):.0f} %"]
        for name, steps in found.items()
    ]
    print(table(["model and precision", "steps", "median error", "worst"], rows))
    print(json.dumps({"steps": {name: [asdict(one) for one in steps] for name, steps in found.items()}, **machine()}))
    good = max(medians.values()) <= MOST
    print(f"Median error at most {100 * MOST:.0f} %: {'yes' if good else 'NO'} (worst median {100 * max(medians.values()):.1f} %)")
    sys.exit(not good)


if __name__ == "__main__":
    main()
