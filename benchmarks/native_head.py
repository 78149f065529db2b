"""The head, whole and by its sketch, and with and without rows x vocabulary, in turns in one run.

    python benchmarks/native_head.py smollm2-135m [--rows 1 4 16] [--precision file]

"logits" computes all of them; "sketched" finds the largest by way of the sketch, however many rows there are, and "drawn" with it
what noise draws at temperature 1 ("used": for how many rows the engine does each). "likeliest" finds the 8 largest of every row,
which drafters learn from, in logits that are there; "top 8" asks the kernel for these 8 and keeps no logits (int8 only). The last
line says how far off rough values are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from common import data_file, machine, table
from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.model.catalogue import resolve
from hasten.model.kernels import set_threads
from hasten.native.kernels import PackedLinear
from hasten.native.sketch import DEVIATIONS
from hasten.sampling.likeliest import likeliest

LIKELIEST, CONTEXT = 8, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--law", type=int, default=768, help="Tokens of text over which the sketch's error is measured.")
    args = parser.parse_args()
    config = EngineConfig(model=args.model, precision=args.precision, cache_tokens=1024)
    model = load_model(args.model, resolve(args.model, fetch=True).path, config, choose_device("cpu"), silent)
    set_threads(0, model.executor.decoder.precision)  # as the engine does
    weights = model.executor.decoder.weights
    head, sketch = weights.head, weights.sketch
    if sketch is None:
        raise SystemExit("This compares native kernels, and they are not in use here, or this head has no sketch.")
    out = []
    blocks = list(range(-(-(CONTEXT + max(args.rows)) // BLOCK_SIZE)))
    text = model.tokenizer.encode(data_file("wikitext2_test_part.txt").read_text()[:20_000], add_bos=True)
    model.executor.forward(Batch([Segment(blocks, 0, text[:CONTEXT], first_logit=CONTEXT - 1)]))
    for rows in args.rows:
        last, keep = Segment(blocks, CONTEXT, text[CONTEXT : CONTEXT + rows], leaders=1), torch.ones(rows, dtype=torch.int64)
        hidden = model.executor.hidden(Batch([last]))
        seconds: dict[str, list[float]] = {}

        def timed(name: str, call: Callable[[], Any], seconds: dict[str, list[float]] = seconds) -> Any:
            started = time.perf_counter()
            result = call()
            seconds.setdefault(name, []).append(time.perf_counter() - started)
            return result

        for _ in range(args.repeats):
            timed("step", partial(model.executor.forward, Batch([last])))
            logits = timed("logits", partial(head, hidden))
            found = timed("sketched", partial(sketch.leaders, hidden, keep))
            assert torch.equal(found.argmax(1), logits.argmax(1))
            timed("drawn", partial(sketch.leaders, hidden, keep, draws=[(1.0, 7, row) for row in range(rows)]))
            some = timed("likeliest", partial(likeliest, logits, LIKELIEST))
            if isinstance(head, PackedLinear):
                best = timed("top 8", partial(head.top_k, hidden, LIKELIEST))
                assert best[0].tolist() == some
        least = {name: 1e3 * min(some) for name, some in seconds.items()}
        used = ["yes" if sketch.pays(keep, drawn) else "no" for drawn in (False, True)]
        out.append([str(rows), *(f"{value:.3f}" for value in least.values()), *used])
    print(table(["rows", *(f"{name}, ms" for name in least), "used", "drawn used"], out))
    print(law(model, sketch, text[: args.law]))
    print(machine())


def law(model: LoadedModel, sketch: Any, text: list[int]) -> str:
    """How far the sketch's values of a text are off the head's, in units of the deviation that they are taken to have; and how
    many outputs of a row alone are computed again."""
    blocks, unit = list(range(-(-len(text) // BLOCK_SIZE))), sketch._error / DEVIATIONS
    values = squares = most = again = 0.0
    for start in range(0, len(text), CONTEXT):
        hidden = model.executor.hidden(Batch([Segment(blocks, start, text[start : start + CONTEXT])]))
        for row in torch.split(hidden, 1):
            rough = sketch.rough(row)
            off = (rough - sketch.exact(row)) / (unit * row.norm())
            values, squares, most = values + off.numel(), squares + float(off.square().sum()), max(most, float(off.abs().max()))
            again += int((sketch.leaders(row, torch.ones(1, dtype=torch.int64)) != rough).sum())
    deviation = (squares / values) ** 0.5
    return (
        f"{values:.3g} rough values: deviation {deviation:.3f}, at most {most:.2f}; {again / len(text):.0f} outputs of a row again"
    )


if __name__ == "__main__":
    main()
