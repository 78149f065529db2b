"""What a level of a draft model takes in several precisions, and a step of its target, all measured in turns in one run.

    python benchmarks/draft_level.py qwen2.5-coder-1.5b --precision int4 --drafts q4_0 int3

A level is a pass of the draft model with the head that it drafts with (the trimmed one). ``int3`` is what ``hasten draft quantize``
made where it was run. Under each number of rows: the median and the best of the passes in milliseconds; the last column is the best
level of one row over the target's best step of one row. Passes of many rows are how prompts are read.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace

from common import machine, read_bandwidth, table
from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.engine.profiling import sample_tokens, timed_passes
from hasten.model.catalogue import resolve
from hasten.model.kernels import set_threads


def load(name: str, config: EngineConfig, draft: bool) -> LoadedModel:
    found = resolve(name, fetch=True)
    return load_model(found.name, found.path, config, choose_device("cpu"), silent, draft=draft, trim=draft)


def shown(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f} / {1e3 * min(seconds):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="auto", help="of the target")
    parser.add_argument("--draft-model")
    parser.add_argument("--drafts", nargs="+", default=["q4_0", "int3"], help="precisions of the draft model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 256])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    name = args.draft_model or resolve(args.model, fetch=True).draft
    if name is None:
        parser.error("no draft model is known; name one by --draft-model")
    config = EngineConfig(model=args.model, precision=args.precision, cache_tokens=4096)
    target = load(args.model, config, draft=False)
    drafts = {precision: load(name, replace(config, precision=precision), draft=True) for precision in args.drafts}
    set_threads(0, target.executor.decoder.precision)
    text = sample_tokens(target.tokenizer)
    passes = {key: timed_passes(model.executor, text) for key, model in {"target": target, **drafts}.items()}
    points = [("target", 1), *((precision, rows) for precision in args.drafts for rows in args.rows)]
    seconds: dict[tuple[str, int], list[float]] = {point: [] for point in points}
    speeds = []
    for each in passes.values():
        each(max(args.rows), args.context)  # fills the pool
    for _ in range(args.repeats):
        speeds.append(read_bandwidth(512, 1))
        for (key, rows), spent in seconds.items():
            spent.append(passes[key](rows, args.context))
    step = min(seconds["target", 1])
    lines = [["target", "", shown(seconds["target", 1]), *[""] * len(args.rows)]]
    for precision, model in drafts.items():
        spents = [seconds[precision, rows] for rows in args.rows]
        ids = str(model.head.outputs) if model.head else "all"
        lines.append([precision, ids, *map(shown, spents), f"{min(spents[0]) / step:.2f}"])
    print(table(["", "ids", *(f"{rows} rows" for rows in args.rows), "of a step"], lines))
    print(json.dumps({**vars(args), "draft_model": name, "read_GB_s": round(max(speeds) / 1e9, 1), **machine()}))


if __name__ == "__main__":
    main()
