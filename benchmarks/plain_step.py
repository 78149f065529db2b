"""A plain decoding step against the memory floor, measured in turns in one run; load time and peak memory beside it.

    python benchmarks/plain_step.py qwen2.5-coder-1.5b
    python benchmarks/plain_step.py smollm2-135m --context 4096 --kv-cache auto bf16 int8

Several cache types share the weights and are measured in turns.

The floor is the bytes of weights that one step reads (projections, and the head or its sketch) over the read bandwidth of the same
moment. Rows and context are ordinary text, greedy: only the largest logit of a row has to be exact.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

from common import machine, read_bandwidth, step_bytes, table
from hasten.core.config import KV_CACHE_DTYPES, EngineConfig
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE
from hasten.engine.loading import choose_device, load_model
from hasten.engine.profiling import sample_tokens, timed_passes
from hasten.model.attention import choose_cache
from hasten.model.catalogue import resolve
from hasten.model.executor import Executor
from hasten.model.kernels import set_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--kv-cache", nargs="+", choices=KV_CACHE_DTYPES, default=["auto"])
    args = parser.parse_args()
    room = max(4096, args.context + max(args.rows) + BLOCK_SIZE)
    config = EngineConfig(model=args.model, precision=args.precision, cache_tokens=room, kv_cache_dtype=args.kv_cache[0])
    path = resolve(args.model, fetch=True).path
    started = time.perf_counter()
    model = load_model(args.model, path, config, choose_device("cpu"), silent)
    load = time.perf_counter() - started
    set_threads(0, model.executor.decoder.precision)  # as the engine does
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = model.executor.decoder.weights
    size = step_bytes(weights, model.executor.decoder.precision.weights.itemsize)
    decoder = model.executor.decoder
    executors = {args.kv_cache[0]: model.executor}
    for cache in args.kv_cache[1:]:
        chosen = choose_cache(cache, decoder.precision, decoder.description, model.executor.device)
        executors[cache] = Executor(decoder, model.num_blocks, model.executor.device, chosen)
    text = sample_tokens(model.tokenizer)
    timed = {cache: timed_passes(executor, text) for cache, executor in executors.items()}
    for cache in executors:
        timed[cache](max(args.rows), args.context)  # fills the pool
    seconds: dict[tuple[str, int], list[float]] = {(cache, rows): [] for rows in args.rows for cache in executors}
    floors: list[float] = []
    for _ in range(args.repeats):
        floors.append(size / read_bandwidth(512, 1))
        for cache in executors:
            timed[cache](1, args.context)  # pays for the memory that the reading gave back
        for (cache, rows), spent in seconds.items():
            spent.append(timed[cache](rows, args.context))
    floor = min(floors)
    print(
        table(
            ["rows", "cache", "pool MB", "median ms", "best ms", "best over floor"],
            [
                [
                    str(rows),
                    cache,
                    f"{executors[cache].pool.bytes / 1e6:.1f}",
                    f"{1e3 * statistics.median(s):.1f}",
                    f"{1e3 * min(s):.1f}",
                    f"{min(s) / floor:.2f}",
                ]
                for (cache, rows), s in seconds.items()
            ],
        )
    )
    print(
        json.dumps(
            {
                "model": args.model,
                "precision": args.precision,
                "step_GB": round(size / 1e9, 3),
                "floor_ms": round(1e3 * floor, 1),
                "read_GB_s": round(size / floor / 1e9, 2),
                "load_s": round(load, 2),
                "peak_GB": round(peak / 1e9, 2),
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
