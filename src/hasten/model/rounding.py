"""Four-bit rounding that knows its inputs: each rounding error is made good by the weights that are still to be rounded.

GPTQ (Frantar et al., 2210.17323, sections 3 and 4) on progressive groups (QoQ, 2405.04532, section 4.1). The error of a projection
W rounded to Q is tr((W - Q) H (W - Q)^T), where H is the mean of x x^T over its inputs x. Columns are rounded one after another;
what a column lost is made good by those behind it, by the Cholesky factor of the inverse of H. Groups come in the order of their
inputs' energy, and so do the columns inside them. A group's integer scale and offset are fitted when its turn comes, with each
column weighted by what its error will cost. Then every code is put once more where the error is least with the others as they are
(coordinate descent: QuantEase, 2309.01885, section 3), ``SWEEPS`` times.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

GROUP = 64
MOST_CODE = 15.0
MOST_SCALE = 17.0
DAMPING = 0.01  # share of the mean energy that is added to every input's, as in GPTQ
SWEEPS = 2
RANGES = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6)  # of the group's own, tried for its scale
SIDES = (0.0, 0.25, 0.5, 0.75, 1.0)  # where a shorter range lies in the whole one
OFFSET_STEPS = 2
FITTED_TOGETHER = 1024  # outputs: few enough for a processor's cache


@dataclass(frozen=True, slots=True)
class Rounded:
    """What ``PackedLinear4`` takes: ``codes`` uint8 [outputs, inputs], ``group_scale`` uint8 and ``group_offset`` int8 [outputs,
    groups], ``scale`` float32 [outputs]."""

    codes: Tensor
    group_scale: Tensor
    group_offset: Tensor
    scale: Tensor


def damped(moments: Tensor) -> Tensor:
    """A copy of H that can be inverted. Zeros become the identity: inputs that never were anything."""
    out = moments.clone()
    out.diagonal().add_(DAMPING * moments.diagonal().mean() + torch.finfo(moments.dtype).tiny ** 0.5)
    return out


def round_with_feedback(weight: Tensor, moments: Tensor) -> Rounded:
    """Round float32 ``weight`` [outputs, inputs] (rotated already); ``moments`` [inputs, inputs] is the mean of x x^T."""
    moments = damped(moments)
    unit = weight.abs().amax(1).clamp_min_(1e-30) / 127.0
    grid = _Grid.fitted(weight / unit[:, None], moments)
    for _ in range(SWEEPS):
        _descend(grid, weight / unit[:, None], moments)
    values = grid.values()
    along = values @ moments
    gain = (along * weight).sum(1) / (along * values).sum(1).clamp_min_(1e-30)
    scale = torch.where(gain > 0, gain, unit)
    return Rounded(
        grid.codes.to(torch.uint8), grid.group_scale.to(torch.uint8), grid.group_offset.to(torch.int8), scale.contiguous()
    )


@dataclass(frozen=True, slots=True)
class _Grid:
    """Codes [outputs, inputs] and the groups they stand in, as float32 while they are worked on."""

    codes: Tensor
    group_scale: Tensor
    group_offset: Tensor

    def group(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, offset and the largest code (so that none leads out of int8) of one group, each [outputs]."""
        scale, offset = self.group_scale[:, index], self.group_offset[:, index]
        return scale, offset, largest_code(scale, offset)

    def values(self) -> Tensor:
        """The int8 weights that the codes stand for, as float32 [outputs, inputs]."""
        inputs = self.codes.shape[1]
        scale = self.group_scale.repeat_interleave(GROUP, 1)[:, :inputs]
        offset = self.group_offset.repeat_interleave(GROUP, 1)[:, :inputs]
        return self.codes * scale + offset

    @staticmethod
    def fitted(weight: Tensor, moments: Tensor) -> _Grid:
        """Rounded column by column with feedback; ``weight`` in units of int8, ``moments`` damped."""
        outputs, inputs = weight.shape
        groups = -(-inputs // GROUP)
        group_order, order = _orders(moments.diagonal())
        factor = _inverse_factor(moments[order][:, order])
        left = weight[:, order]
        grid = _Grid(torch.empty_like(weight), torch.empty(outputs, groups), torch.empty(outputs, groups))
        start = 0
        for group in group_order:
            stop = min(start + GROUP, start + inputs - group * GROUP)
            here = factor[start:stop, start:stop]
            part = left[:, start:stop].clone()
            grid.group_scale[:, group], grid.group_offset[:, group] = fit_groups(part, here.diagonal().pow(-2))
            losses = _round_group(grid, group, order[start:stop], part, here)
            left[:, stop:].addmm_(losses, factor[start:stop, stop:], alpha=-1)
            start = stop
        return grid


def _orders(energy: Tensor) -> tuple[list[int], Tensor]:
    """Groups by falling mean energy of their inputs, and all inputs in the order of their groups, by falling energy inside."""
    inputs = energy.shape[0]
    parts = torch.split(energy, GROUP)
    groups = torch.stack([part.mean() for part in parts]).argsort(descending=True, stable=True).tolist()
    order = torch.cat([group * GROUP + parts[group].argsort(descending=True, stable=True) for group in groups])
    assert order.shape[0] == inputs
    return groups, order


def _inverse_factor(moments: Tensor) -> Tensor:
    """U upper triangular with U^T U = the inverse of ``moments``."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _round_group(grid: _Grid, group: int, columns: Tensor, part: Tensor, factor: Tensor) -> Tensor:
    """Round ``part`` [outputs, n], the group's weights in the order of ``columns``; returns what each column lost, divided by its
    place on the factor's diagonal. ``part`` is used up."""
    scale, offset, most = grid.group(group)
    diagonal = factor.diagonal().tolist()
    losses, codes = torch.empty_like(part), torch.empty_like(part)
    for at in range(part.shape[1]):
        code = torch.minimum(((part[:, at] - offset) / scale).round_().clamp_(min=0), most)
        loss = (part[:, at] - (code * scale + offset)) / diagonal[at]
        part[:, at + 1 :].addr_(loss, factor[at, at + 1 :], alpha=-1)
        codes[:, at], losses[:, at] = code, loss
    grid.codes[:, columns] = codes
    return losses


def largest_code(scale: Tensor, offset: Tensor) -> Tensor:
    return ((127.0 - offset) / scale).floor_().clamp_(max=MOST_CODE)


def fit_groups(part: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Integer scale (1 to 17) and offset (an int8) of each row of ``part`` [outputs, n] with the least squared error, columns
    weighted by ``importance`` [n]; both float32 [outputs]."""
    fits = [_fitted_rows(rows, importance / importance.sum()) for rows in torch.split(part, FITTED_TOGETHER)]
    scales, offsets = zip(*fits, strict=True)
    return torch.cat(scales), torch.cat(offsets)


def _fitted_rows(part: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    low, high = part.amin(1), part.amax(1)
    least = torch.full_like(low, torch.inf)
    best_scale, best_offset = torch.ones_like(low), torch.zeros_like(low)
    for share, side in product(RANGES, SIDES):
        scale = ((high - low) * (share / MOST_CODE)).round_().clamp_(1.0, MOST_SCALE)
        offset = (low + side * (high - low - MOST_CODE * scale)).round_().clamp_(-128.0, 127.0)
        for _ in range(OFFSET_STEPS):
            code = ((part - offset[:, None]) / scale[:, None]).round_().clamp_(min=0)
            code = torch.minimum(code, largest_code(scale, offset)[:, None])
            rest = part - (code * scale[:, None] + offset[:, None])
            error = rest.square() @ importance
            better = error < least
            least = torch.where(better, error, least)
            best_scale, best_offset = torch.where(better, scale, best_scale), torch.where(better, offset, best_offset)
            offset = (offset + (rest @ importance).round_()).clamp_(-128.0, 127.0)
    return best_scale, best_offset


def _descend(grid: _Grid, weight: Tensor, moments: Tensor) -> None:
    """One sweep over all codes, each put where the error is least with the others as they are."""
    slope = (weight - grid.values()) @ moments  # half the error's fall for each unit of each weight
    for group, columns in enumerate(torch.split(torch.arange(weight.shape[1]), GROUP)):
        start, stop = int(columns[0]), int(columns[-1]) + 1
        scale, _, most = grid.group(group)
        here, falls = moments[start:stop, start:stop], slope[:, start:stop].clone()
        moves = torch.empty_like(falls)
        for at in range(stop - start):
            code = grid.codes[:, start + at]
            wanted = code + (falls[:, at] / (here[at, at] * scale)).round_()
            chosen = torch.minimum(wanted.clamp_(min=0), most)
            moves[:, at] = (chosen - code) * scale
            grid.codes[:, start + at] = chosen
            falls.addr_(moves[:, at], here[at], alpha=-1)
        slope.addmm_(moves, moments[start:stop], alpha=-1)
