"""Rounding to few bits that knows its inputs: each rounding error is made good by the weights that are still to be rounded.

The error of a projection W rounded to Q is tr((W - Q) H (W - Q)^T), where H is the mean of x x^T over its inputs x. With H = U D
U^T, U a unit upper triangle, it is a sum of one square for each input, and each is made least in turn (LDLQ: QuIP, 2307.13304,
section 3, which is GPTQ, 2210.17323, without an inverse), on progressive groups (QoQ, 2405.04532, section 4.1). Groups come in
the order of their inputs' energy, and so do the inputs inside them. A group's integer scale and offset are those that serve best
with the feedback inside the group. Then every group is fitted once more with all the others as they are, and its codes descend
one by one (QuantEase, 2309.01885, section 3), ``SWEEPS`` times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.native.feedback import descend_group, fit_group
from hasten.native.kernels import GROUP_INPUTS as GROUP
from hasten.native.loader import NativeLibrary

DAMPING = 0.01  # share of the mean energy that is added to every input's, as in GPTQ
SWEEPS = 2
TOGETHER = 16  # groups whose moves reach the others in one product
PASSES = 3  # over the codes of a group in a sweep


@dataclass(frozen=True, slots=True)
class Rounded:
    """What ``PackedProgressive`` takes: ``codes`` uint8 [outputs, inputs], ``group_scale`` uint8 and ``group_offset`` int8
    [outputs, groups], ``scale`` float32 [outputs]."""

    codes: Tensor
    group_scale: Tensor
    group_offset: Tensor
    scale: Tensor


def damp(moments: Tensor) -> Tensor:
    """``moments`` changed so that it can be inverted. Zeros become the identity: inputs that never were anything."""
    moments.diagonal().add_(DAMPING * moments.diagonal().mean() + torch.finfo(moments.dtype).tiny ** 0.5)
    return moments


def round_with_feedback(library: NativeLibrary, weight: Tensor, moments: Tensor, bits: int) -> Rounded:
    """Round float32 ``weight`` [outputs, inputs] (rotated already) to ``bits``; ``moments`` [inputs, inputs] is H."""
    groups, order = _orders(moments.diagonal())
    ordered = damp(moments[order[:, None], order])
    grid = _Grid(library, weight[:, order], groups, bits)
    grid.fit(ordered)
    grid.sweep(ordered, SWEEPS)
    codes = torch.empty_like(grid.codes)
    codes[:, order] = grid.codes
    return Rounded(codes.to(torch.uint8), grid.group_scale.to(torch.uint8), grid.group_offset.to(torch.int8), grid.scale)


class _Grid:
    """Weights [outputs, inputs] with inputs in the order of rounding, and the codes and values (in units of ``scale``) they get."""

    def __init__(self, library: NativeLibrary, weight: Tensor, groups: list[int], bits: int) -> None:
        self._library, self._weight, self._bits = library, weight, bits
        outputs, inputs = weight.shape
        self.scale = weight.abs().amax(1).clamp_min_(1e-30) / 127.0
        self.codes, self._values = torch.empty_like(weight), torch.empty_like(weight)
        self.group_scale, self.group_offset = (torch.empty(outputs, len(groups)) for _ in range(2))
        self._groups: list[tuple[int, slice]] = []
        start = 0
        for group in groups:
            stop = min(start + GROUP, start + inputs - group * GROUP)
            self._groups.append((group, slice(start, stop)))
            start = stop

    def fit(self, moments: Tensor) -> None:
        """Group after group, each to the weights and what the errors before it ask of them."""
        factor, cost = unit_factor(moments)
        weight = self._weight / self.scale[:, None]
        lost = torch.empty_like(weight)
        for group, here in self._groups:
            targets = torch.addmm(weight[:, here], lost[:, : here.start], factor[: here.start, here])
            fitted = fit_group(self._library, weight[:, here], targets, factor[here, here], cost[here], bits=self._bits)
            count = here.stop - here.start
            self.codes[:, here], self._values[:, here] = fitted.codes[:, :count], fitted.values[:, :count]
            self.group_scale[:, group], self.group_offset[:, group] = fitted.scale, fitted.offset
            torch.sub(weight[:, here], self._values[:, here], out=lost[:, here])

    def sweep(self, moments: Tensor, times: int) -> None:
        """Group after group once more, with all others as they are; then the float scale that serves the values best."""
        wanted, along = self._weight @ moments, self._values @ moments
        for _ in range(times):
            for start in range(0, len(self._groups), TOGETHER):
                some = self._groups[start : start + TOGETHER]
                block = slice(some[0][1].start, some[-1][1].stop)
                slopes = wanted[:, block] / self.scale[:, None] - along[:, block]  # half the error's fall for a unit of each value
                moves = torch.empty_like(slopes)
                for group, here in some:
                    local = slice(here.start - block.start, here.stop - block.start)
                    moves[:, local] = self._refit(group, here, moments[here, here], slopes[:, local])
                    slopes.addmm_(moves[:, local], moments[here, block], alpha=-1)
                along.addmm_(moves, moments[block])
            gain = (self._values * wanted).sum(1) / (along * self._values).sum(1).clamp_min_(1e-30)
            self.scale = torch.where(gain > 0, gain, self.scale)

    def _refit(self, group: int, here: slice, moments: Tensor, slopes: Tensor) -> Tensor:
        """A better grid near a group's own where there is one, and better codes; returns how its values moved."""
        values, count = self._values[:, here], here.stop - here.start
        distance = slopes @ torch.cholesky_inverse(torch.linalg.cholesky(moments))
        wanted = values + distance
        start = self.group_scale[:, group], self.group_offset[:, group]
        fitted = fit_group(self._library, wanted, wanted, *unit_factor(moments), start, self._bits)
        better = fitted.error < (slopes * distance).sum(1)
        fitted.codes[:, :count] = torch.where(better[:, None], fitted.codes[:, :count], self.codes[:, here])
        fitted.scale.copy_(torch.where(better, fitted.scale, start[0]))
        fitted.offset.copy_(torch.where(better, fitted.offset, start[1]))
        moved = fitted.codes[:, :count] * fitted.scale[:, None] + fitted.offset[:, None] - values
        descend_group(self._library, fitted, moments, slopes - moved @ moments, PASSES, self._bits)
        moves = fitted.values[:, :count] - values
        self.codes[:, here], self._values[:, here] = fitted.codes[:, :count], fitted.values[:, :count]
        self.group_scale[:, group], self.group_offset[:, group] = fitted.scale, fitted.offset
        return moves


def _orders(energy: Tensor) -> tuple[list[int], Tensor]:
    """Groups by falling mean energy of their inputs, and all inputs in the order of their groups, by falling energy inside."""
    parts = torch.split(energy, GROUP)
    groups = torch.stack([part.mean() for part in parts]).argsort(descending=True, stable=True).tolist()
    order = torch.cat([group * GROUP + parts[group].argsort(descending=True, stable=True) for group in groups])
    return groups, order


def unit_factor(moments: Tensor) -> tuple[Tensor, Tensor]:
    """U, a unit upper triangle, and the diagonal D of ``moments`` = U D U^T."""
    lower = torch.linalg.cholesky(moments.flip(0, 1))
    upper = lower.flip(0, 1)
    diagonal = upper.diagonal().clone()
    return upper.div_(diagonal), diagonal.square()
