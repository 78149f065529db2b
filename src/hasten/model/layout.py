"""A batch as flat tensors: which row is which token, where it stands, where it is written, what it may see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.types import BLOCK_SIZE, Batch, Segment


@dataclass(frozen=True, slots=True)
class Layout:
    """All rows of a batch, segment after segment. T rows, S segments.

    ``tokens``, ``positions``, ``slots``: int64 [T]. ``starts`` int32 [S + 1] row borders of segments. ``contexts``, ``chains``
    int32 [S]. ``block_tables`` int32 [S, widest]. ``depths`` int32 [T]: 0 for chain rows. ``paths`` int32 [T, deepest]: for a node
    row of depth D the virtual indices of its keys behind the chain, in position order, itself last; D entries count. ``logit_rows``
    int64 [L]; ``leaders`` int64 [L]: how many of each row's largest logits have to be exact, None where some row wants all.
    ``draws``: L times the temperature, seed and position by which one more is found that has to be, temperature 0 for none; None
    for no row.
    """

    batch: Batch
    tokens: Tensor
    positions: Tensor
    slots: Tensor
    starts: Tensor
    contexts: Tensor
    chains: Tensor
    block_tables: Tensor
    depths: Tensor
    paths: Tensor
    logit_rows: Tensor
    leaders: Tensor | None
    draws: list[tuple[float, int, int]] | None
    highest_position: int


def lay_out(batch: Batch, device: torch.device) -> Layout:
    """Flatten a batch. The work is in plain lists: steps of a few rows dominate, and small tensors cost more. Those of one dtype
    are parts of one."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    depths: list[int] = []
    logit_rows: list[int] = []
    leaders: list[int] = []
    paths: list[list[int]] = []
    for segment in batch.segments:
        first = len(tokens)
        chain = len(segment.chain)
        tokens += segment.chain
        tokens += segment.tree.tokens
        node_depths = segment.tree.depths()
        positions += range(segment.context, segment.context + chain)
        positions += [segment.context + chain - 1 + depth for depth in node_depths]
        slots += _slots(segment)
        depths += [0] * chain
        depths += node_depths
        paths += [[]] * chain
        paths += _paths(segment)
        logit_rows += range(first + segment.first_logit, len(tokens))
        leaders += [segment.leaders] * (segment.rows - segment.first_logit)
        starts.append(len(tokens))
    widest = max(len(segment.blocks) for segment in batch.segments)
    tables = [block for segment in batch.segments for block in segment.blocks + [0] * (widest - len(segment.blocks))]
    contexts, chains = [segment.context for segment in batch.segments], [len(segment.chain) for segment in batch.segments]
    deepest = max(1, max(depths))
    nodes = [index for path in paths for index in path + [0] * (deepest - len(path))]
    long = torch.tensor([*tokens, *positions, *slots, *logit_rows], device=device)
    token_row, position_row, slot_row, wanted = _parts(long, tokens, positions, slots, logit_rows)
    small = torch.tensor([*starts, *contexts, *chains, *tables, *depths, *nodes], dtype=torch.int32)
    borders, before, chained, blocks, deep, above = _parts(small, starts, contexts, chains, tables, depths, nodes)
    return Layout(
        batch,
        token_row,
        position_row,
        slot_row,
        borders,
        before,
        chained,
        blocks.view(len(chains), widest),
        deep,
        above.view(len(tokens), deepest),
        wanted,
        torch.tensor(leaders) if leaders and min(leaders) > 0 else None,
        _draws(batch, [positions[row] for row in logit_rows]) if any(segment.draw for segment in batch.segments) else None,
        max(positions),
    )


def _parts(together: Tensor, *lists: list[int]) -> tuple[Tensor, ...]:
    """Each list's own part of a tensor that was made of all of them, which takes less time than a tensor for each."""
    return torch.split(together, [len(each) for each in lists])


def _draws(batch: Batch, positions: list[int]) -> list[tuple[float, int, int]]:
    """``Layout.draws`` of rows that want logits and stand at ``positions``."""
    drawn = [segment.draw for segment in batch.segments for _ in range(segment.first_logit, segment.rows)]
    return [
        (0.0, 0, 0) if draw is None else (draw.temperature, draw.seed, position + 1)
        for draw, position in zip(drawn, positions, strict=True)
    ]


def _slots(segment: Segment) -> list[int]:
    blocks = segment.blocks
    return [
        blocks[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
        for index in range(segment.context, segment.context + segment.rows)
    ]


def _paths(segment: Segment) -> list[list[int]]:
    """Virtual indices of each node's path, itself included."""
    base = segment.context + len(segment.chain)
    out: list[list[int]] = []
    for node, parent in enumerate(segment.tree.parents):
        above = [] if parent < 0 else out[parent]
        out.append([*above, base + node])
    return out


def visibility(segment: Segment, window: int, device: torch.device) -> Tensor:
    """bool [rows, context + rows]: which virtual indices each row attends to. ``window`` counts positions, 0 for all."""
    chain, rows, context = len(segment.chain), segment.rows, segment.context
    depths = segment.tree.depths()
    position = torch.tensor([*range(context + chain), *(context + chain - 1 + depth for depth in depths)])
    visible = torch.zeros(rows, context + rows, dtype=torch.bool)
    visible[:, : context + chain] = torch.ones(rows, context + chain, dtype=torch.bool).tril(context)
    for node, path in enumerate(_paths(segment)):
        visible[chain + node, path] = True
    if window:
        visible &= position[None, :] > position[context:, None] - window
    return visible.to(device)
