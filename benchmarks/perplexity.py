"""Perplexity of a model in several precisions on a text file, chunk by chunk.

python benchmarks/perplexity.py smollm2-135m --precisions bf16 int8 --chunks 8
"""

from __future__ import annotations

import argparse
import json
import math

import torch

from common import data_file, machine, table
from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.model.catalogue import resolve


def perplexity(model: LoadedModel, tokens: list[int], chunk: int, chunks: int) -> float:
    """exp of the mean loss of tokens 1.. of each chunk (each starts afresh, after what the tokenizer puts first)."""
    lead = list(model.tokenizer.prefix_ids)
    total, count = 0.0, 0
    for start in range(0, chunk * chunks, chunk):
        piece = lead + tokens[start : start + chunk - len(lead)]
        blocks = list(range(-(-len(piece) // BLOCK_SIZE)))
        logits = model.executor.forward(Batch([Segment(blocks, 0, piece)]))
        losses = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(piece[1:]), reduction="sum")
        total += float(losses)
        count += len(piece) - 1
    return math.exp(total / count)


def measure(name: str, precision: str, chunk: int, chunks: int) -> float:
    config = EngineConfig(model=name, precision=precision, cache_tokens=chunk)
    resolved = resolve(name, fetch=True)
    model = load_model(name, resolved.path, config, choose_device(config.device), silent)
    text = data_file("wikitext2_test_part.txt").read_text()
    return perplexity(model, model.tokenizer.encode(text, add_bos=False), chunk, chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for name in args.models:
        values = {precision: measure(name, precision, args.chunk, args.chunks) for precision in args.precisions}
        base = values[args.precisions[0]]
        rows.append([name, *(f"{value:.3f} ({100 * (value / base - 1):+.2f} %)" for value in values.values())])
        if args.json:
            print(json.dumps({"model": name, "perplexity": values, "chunks": args.chunks, **machine()}), flush=True)
    print(table(["model", *args.precisions], rows))
    print(machine())


if __name__ == "__main__":
    main()
