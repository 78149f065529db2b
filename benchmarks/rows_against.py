"""Steps of so many rows behind a context, Hasten's and llama.cpp's on the same file, in turns in one run.

    python benchmarks/rows_against.py qwen2.5-coder-1.5b --precisions int8 int4 file

Both compute the logits of every row; Hasten's are exact for the largest of each, as in a greedy step. llama.cpp's step is its
decode call alone, in a process of its own that waits while it is not asked.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import closing
from pathlib import Path

from common import data_file, machine, table
from hasten.bench.peers import engines
from hasten.bench.peers.environment import python_of, versions_of
from hasten.bench.peers.process import WORKERS, PeerProcess
from hasten.bench.session import ContestantFailed
from hasten.control.profile import Timed
from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.engine.profiling import timed_passes
from hasten.model.catalogue import resolve
from hasten.model.kernels import set_threads, threads_and_level

LLAMA = "llama.cpp"
Seconds = dict[tuple[str, int], list[float]]  # by engine and rows


def other_engine(gguf: Path, text: list[int], context: int) -> PeerProcess:
    """llama.cpp, which has read the first ``context`` of the text. Raises ContestantFailed."""
    threads, script = threads_and_level()[0], WORKERS / "llama_cpp_rows_worker.py"
    asked = {"name": LLAMA, "gguf": str(gguf), "text": text, "context": context, "threads": threads}
    return PeerProcess(python_of(engines()[LLAMA].recipe, print), script, asked)


def loaded(name: str, precision: str, path: Path, room: int) -> LoadedModel:
    config = EngineConfig(model=name, precision=precision, cache_tokens=room)
    return load_model(name, path, config, choose_device("cpu"), silent)


def in_turns(ours: dict[str, Timed], other: PeerProcess, rows: list[int], context: int, repeats: int) -> Seconds:
    """Of every step the second of two in a row: whoever was before has taken the caches."""

    def step(name: str, count: int) -> float:
        return ours[name](count, context) if name in ours else float(other.ask({"rows": count})["seconds"])

    found: Seconds = {(name, count): [] for count in rows for name in (*ours, LLAMA)}
    for _ in range(repeats):
        for (name, count), spent in found.items():
            step(name, count)
            spent.append(step(name, count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precisions", nargs="+", default=["int8", "int4"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    path, most = resolve(args.model, fetch=True).path, args.context + max(args.rows)
    models = {precision: loaded(args.model, precision, path, most + BLOCK_SIZE) for precision in args.precisions}
    first = next(iter(models.values()))
    set_threads(0, first.executor.decoder.precision)  # as the engine does
    characters = data_file("wikitext2_test_part.txt").read_text(encoding="utf-8")[: 20 * most]
    text = first.tokenizer.encode(characters, add_bos=True)[:most]
    ours = {precision: timed_passes(model.executor, text) for precision, model in models.items()}
    for timed in ours.values():
        timed(max(args.rows), args.context)  # fills the pool
    try:
        with closing(other_engine(path, text, args.context)) as other:
            seconds = in_turns(ours, other, args.rows, args.context, args.repeats)
    except ContestantFailed as problem:
        raise SystemExit(str(problem)) from problem
    print(f"Median milliseconds of a step behind {args.context} positions, and how many times as long llama.cpp's takes\n")
    print(
        table(
            ["engine", *(f"{rows} rows" for rows in args.rows)],
            [[name, *(_cell(seconds, name, rows) for rows in args.rows)] for name in (*ours, LLAMA)],
        )
    )
    print(json.dumps({"model": args.model, LLAMA: versions_of(engines()[LLAMA].recipe), **machine()}))


def _cell(seconds: Seconds, name: str, rows: int) -> str:
    mine, theirs = statistics.median(seconds[name, rows]), statistics.median(seconds[LLAMA, rows])
    return f"{1e3 * mine:.1f}" if name == LLAMA else f"{1e3 * mine:.1f} ({theirs / mine:.2f})"


if __name__ == "__main__":
    main()
