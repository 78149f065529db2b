"""Perplexity of a model in several precisions and cache types on a text file, and how far each is from the first of them.

python benchmarks/perplexity.py smollm2-135m --precisions bf16 int8 --chunks 8
python benchmarks/perplexity.py qwen2.5-coder-0.5b --precisions int8 --kv-cache auto int8 --chunks 12
python benchmarks/perplexity.py smollm2-135m --precisions fp32 int8 int4 int4-nearest int4-alike

``int4`` is what ``hasten quantize`` made where it was run, ``int4-nearest`` plain rounding, ``int4-alike`` what ``hasten quantize
--text`` makes of other text of the kind that is measured: that behind the file's middle, of which nothing is measured.
Every way after the first is compared with the first on the same tokens: the difference of the mean log-likelihoods, as a percentage
of perplexity, with its standard error over chunks (a difference of less than two standard errors is no difference); and the mean
divergence from the first's distribution, KL(first || way), in thousandths of a nat a token. Perplexity on one text also falls where
errors happen to suit the text; the divergence only grows with them.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from common import data_file, machine, table
from hasten.core.config import KV_CACHE_DTYPES, EngineConfig
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.model import storage
from hasten.model.catalogue import resolve
from hasten.model.decoder import Decoder
from hasten.model.executor import Executor
from hasten.model.loaders import open_source
from hasten.model.precision import INT4
from hasten.model.weights import Weights, load_decoder
from hasten.train.quantise import pieces_of, round_weights

NEAREST, ALIKE = "int4-nearest", "int4-alike"


def losses(model: LoadedModel, tokens: list[int], chunk: int, chunks: int, reference: Path) -> tuple[Tensor, Tensor]:
    """Mean loss of tokens 1.. of each chunk (each starts afresh, after what the tokenizer puts first), and the mean divergence from
    what the first call with the folder ``reference`` kept there: float64 [chunks] each."""
    lead = list(model.tokenizer.prefix_ids)
    found, apart = [], []
    for index in range(chunks):
        piece = lead + tokens[index * chunk : (index + 1) * chunk - len(lead)]
        blocks = list(range(-(-len(piece) // BLOCK_SIZE)))
        mine = torch.log_softmax(model.executor.forward(Batch([Segment(blocks, 0, piece)])).double(), -1)
        found.append(torch.nn.functional.nll_loss(mine[:-1], torch.tensor(piece[1:])))
        kept = reference / f"{index}.pt"
        if not kept.exists():
            torch.save(mine.half(), kept)
        first = torch.load(kept).double()
        apart.append((first.exp() * (first - mine)).sum(-1).mean())
    return torch.stack(found), torch.stack(apart)


def rounded(source: Weights, device: torch.device, pieces: list[list[int]]) -> Decoder:
    """In int4, for a text of these ``pieces``; to the nearest where there are none."""
    if not pieces:
        return load_decoder(source, INT4, device, storage.converted_path(source.fingerprint, INT4.name))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rounded"
        round_weights(source, path, pieces, INT4)
        return load_decoder(source, INT4, device, path)


def measure(name: str, precision: str, cache: str, chunk: int, chunks: int, reference: Path) -> tuple[Tensor, Tensor]:
    ours = precision in (NEAREST, ALIKE)
    config = EngineConfig(model=name, precision="int4" if ours else precision, kv_cache_dtype=cache, cache_tokens=chunk)
    resolved = resolve(name, fetch=True)
    model = load_model(name, resolved.path, config, choose_device(config.device), silent)
    text = data_file("wikitext2_test_part.txt").read_text()
    tokens = model.tokenizer.encode(text[: len(text) // 2], add_bos=False)
    if len(tokens) < chunk * chunks:
        raise SystemExit(f"Half of the text has {len(tokens)} tokens; take fewer --chunks.")
    if ours:
        device = choose_device(config.device)
        pieces = pieces_of(model.tokenizer, [text[text.index("\n = ", len(text) // 2) + 1 :]]) if precision == ALIKE else []
        decoder = rounded(open_source(resolved.path), device, pieces)
        model = replace(model, executor=Executor(decoder, model.num_blocks, device))
    return losses(model, tokens, chunk, chunks, reference)


def compared(found: Tensor, base: Tensor) -> tuple[float, float]:
    """How much higher the perplexity is, and the standard error of that, both in percent."""
    difference = found - base
    error = float(difference.std()) / math.sqrt(len(difference))
    return 100 * math.expm1(float(difference.mean())), 100 * error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--kv-cache", nargs="+", choices=KV_CACHE_DTYPES, default=["auto"])
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    ways = {precision if cache == "auto" else f"{precision}, cache {cache}": (precision, cache)
            for precision, cache in product(args.precisions, args.kv_cache)}  # fmt: skip
    rows = []
    for name in args.models:
        with TemporaryDirectory() as folder:
            both = {way: measure(name, *asked, args.chunk, args.chunks, Path(folder)) for way, asked in ways.items()}
        values = {way: found for way, (found, _) in both.items()}
        apart = {way: 1000 * float(divergence.mean()) for way, (_, divergence) in both.items()}
        base = values[next(iter(ways))]
        perplexities = {way: math.exp(float(found.mean())) for way, found in values.items()}
        changes = {way: compared(found, base) for way, found in values.items() if found is not base}
        cells = [f"{perplexities[way]:.3f}" for way in ways]
        for place, way in enumerate(ways):
            if way in changes:
                cells[place] += f" ({changes[way][0]:+.2f} ± {changes[way][1]:.2f} %, {apart[way]:.1f})"
        rows.append([name, *cells])
        if args.json:
            record = {
                "model": name,
                "perplexity": perplexities,
                "change_percent": changes,
                "divergence": apart,
                "chunks": args.chunks,
                **machine(),
            }
            print(json.dumps(record), flush=True)
    print(table(["model", *ways], rows))
    print(machine())


if __name__ == "__main__":
    main()
