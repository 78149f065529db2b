"""Steps of so many rows behind a context, Hasten's and llama.cpp's on the same file, in turns in one run.

    python benchmarks/rows_against.py qwen2.5-coder-1.5b --precisions int8 int4 file

Both compute the logits of every row; Hasten's are exact for the largest of each, as in a greedy step. llama.cpp's step is its
decode call alone, in a process of its own that waits while it is not asked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

from common import data_file, machine, table
from hasten.bench.peers import engines
from hasten.bench.peers.environment import own_variables, python_of, versions_of
from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.engine.profiling import timed_passes
from hasten.model.catalogue import resolve
from hasten.model.kernels import set_threads, threads_and_level


class OtherEngine:
    """llama.cpp in a process of its own. Raises SystemExit where that does not start."""

    def __init__(self, gguf: Path, text: list[int], context: int, threads: int) -> None:
        asked = {"gguf": str(gguf), "text": text, "context": context, "threads": threads}
        script = Path(__file__).with_name("rows_llama_cpp.py")
        command = [str(python_of(engines()["llama.cpp"].recipe, print)), str(script), json.dumps(asked)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=own_variables()
        )
        if self._answer() != "ready":
            raise SystemExit(f"llama.cpp does not start; run {script.name} in its environment to see why.")

    def seconds(self, rows: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rows}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def loaded(name: str, precision: str, path: Path, room: int) -> LoadedModel:
    config = EngineConfig(model=name, precision=precision, cache_tokens=room)
    return load_model(name, path, config, choose_device("cpu"), silent)


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
    text = first.tokenizer.encode(data_file("wikitext2_test_part.txt").read_text(encoding="utf-8")[: 20 * most], add_bos=True)[
        :most
    ]
    other = OtherEngine(path, text, args.context, threads_and_level()[0])
    ours = {precision: timed_passes(model.executor, text) for precision, model in models.items()}
    for timed in ours.values():
        timed(max(args.rows), args.context)  # fills the pool
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.repeats):
        for rows in args.rows:
            for precision, timed in ours.items():
                timed(rows, args.context)  # whoever was before has taken the caches
                seconds.setdefault((precision, rows), []).append(timed(rows, args.context))
            other.seconds(rows)
            seconds.setdefault(("llama.cpp", rows), []).append(other.seconds(rows))
    other.close()
    print(f"Median milliseconds of a step behind {args.context} positions, and how many times as long llama.cpp's takes\n")
    print(
        table(
            ["engine", *(f"{rows} rows" for rows in args.rows)],
            [[name, *(_cell(seconds, name, rows) for rows in args.rows)] for name in (*ours, "llama.cpp")],
        )
    )
    print(json.dumps({"model": args.model, "llama.cpp": versions_of(engines()["llama.cpp"].recipe), **machine()}))


def _cell(seconds: dict[tuple[str, int], list[float]], name: str, rows: int) -> str:
    mine, theirs = statistics.median(seconds[name, rows]), statistics.median(seconds["llama.cpp", rows])
    return f"{1e3 * mine:.1f}" if name == "llama.cpp" else f"{1e3 * mine:.1f} ({theirs / mine:.2f})"


if __name__ == "__main__":
    main()
