"""The head with and without rows x vocabulary, in turns in one run: what a greedy step would save by keeping no logits.

    python benchmarks/native_head.py smollm2-135m [--rows 1 4 16]

"logits" computes all of them and takes the first of the largest, and the 8 likeliest of every row (which drafters learn from), as
the engine does; "top 8" asks the kernel for these 8 and keeps no logits.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import torch

from common import machine, table
from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.loading import choose_device, load_model
from hasten.model.catalogue import resolve
from hasten.native.kernels import PackedLinear
from hasten.sampling.likeliest import likeliest

LIKELIEST, CONTEXT = 8, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    config = EngineConfig(model=args.model, precision="int8", cache_tokens=1024)
    model = load_model(args.model, resolve(args.model, fetch=True).path, config, choose_device("cpu"), silent)
    weights, eps = model.executor.decoder.weights, model.executor.decoder.description.norm_eps
    head = weights.head
    if not isinstance(head, PackedLinear):
        raise SystemExit("This compares native kernels, and they are not in use here.")
    out = []
    blocks = list(range(-(-(CONTEXT + max(args.rows)) // BLOCK_SIZE)))
    for rows in args.rows:
        hidden = torch.randn(rows, head.inputs)
        seconds: dict[str, list[float]] = {
            name: [] for name in ("step", "logits", "argmax", "logits + likeliest", "top 1", "top 8")
        }
        for _ in range(args.repeats):
            marks = [time.perf_counter()]
            model.executor.forward(Batch([Segment(blocks, CONTEXT, [1] * rows)]))
            marks.append(time.perf_counter())
            logits = head.after_norm(hidden, weights.final_norm, eps)
            marks.append(time.perf_counter())
            chosen = int(logits[0].numpy().argmax())
            marks.append(time.perf_counter())
            found = likeliest(logits, LIKELIEST)
            marks.append(time.perf_counter())
            first = head.top_k(hidden, 1, weights.final_norm, eps)[0]
            marks.append(time.perf_counter())
            best = head.top_k(hidden, LIKELIEST, weights.final_norm, eps)[0]
            marks.append(time.perf_counter())
            assert (best.tolist(), int(first[0, 0])) == (found, chosen)
            step, whole, argmax, some, top1, top8 = (b - a for a, b in pairwise(marks))
            for name, spent in zip(seconds, (step, whole, argmax, whole + argmax + some, top1, top8), strict=True):
                seconds[name].append(spent)
        least = {name: 1e3 * min(some) for name, some in seconds.items()}
        saved = least["logits + likeliest"] - least["top 8"], least["logits"] + least["argmax"] - least["top 1"]
        shares = [f"{100 * gain / least['step']:+.1f} %" for gain in saved]
        out.append([str(rows), *(f"{value:.3f}" for value in least.values()), *shares])
    print(table(["rows", *(f"{name}, ms" for name in least), "top 8 saves of the step", "top 1 saves"], out))
    print(machine())


if __name__ == "__main__":
    main()
