"""How far a cache type moves a model's laws: the mean Kullback-Leibler divergence of next-token laws from those with float32 keys
and values, on the same tokens. Far less noisy than perplexity, so a few hundred tokens tell designs apart.

    python benchmarks/cache_divergence.py qwen2.5-coder-0.5b --pairs 0 8 16 32

``--pairs``: of a key projection's bias, how many of its largest pairs of dimensions are kept out of the int8 keys.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from common import data_file, machine, table
from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.model import attention
from hasten.model.catalogue import resolve
from hasten.model.executor import Executor


def laws(model: LoadedModel, cache: torch.dtype, tokens: list[int], chunk: int, chunks: int) -> list[Tensor]:
    """Log-probabilities [chunk, vocabulary] of each chunk."""
    lead = list(model.tokenizer.prefix_ids)
    executor = Executor(model.executor.decoder, model.num_blocks, model.executor.device, cache)
    blocks = list(range(-(-chunk // BLOCK_SIZE)))
    pieces = [lead + tokens[start : start + chunk - len(lead)] for start in range(0, chunk * chunks, chunk)]
    return [executor.forward(Batch([Segment(blocks, 0, piece)])).log_softmax(-1) for piece in pieces]


def divergence(found: list[Tensor], base: list[Tensor]) -> float:
    rows = [(one.exp() * (one - other)).sum(-1) for one, other in zip(base, found, strict=True)]
    return float(torch.cat(rows).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--pairs", type=int, nargs="+", default=[attention.KEPT_OUT_PAIRS])
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=2)
    args = parser.parse_args()
    config = EngineConfig(model=args.model, precision=args.precision, cache_tokens=args.chunk)
    model = load_model(args.model, resolve(args.model, fetch=True).path, config, choose_device("cpu"), silent)
    text = data_file("wikitext2_test_part.txt").read_text()[: 12 * args.chunk * args.chunks]
    tokens = model.tokenizer.encode(text, add_bos=False)
    base = laws(model, torch.float32, tokens, args.chunk, args.chunks)
    rows = [["bf16", f"{divergence(laws(model, torch.bfloat16, tokens, args.chunk, args.chunks), base):.5f}"]]
    for pairs in args.pairs:
        attention.KEPT_OUT_PAIRS = pairs
        found = laws(model, torch.int8, tokens, args.chunk, args.chunks)
        rows.append([f"int8, {pairs} pairs kept out", f"{divergence(found, base):.5f}"])
    print(table([f"cache of {args.model} in {args.precision}", "divergence"], rows))
    print(machine())


if __name__ == "__main__":
    main()
