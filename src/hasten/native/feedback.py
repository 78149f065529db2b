"""Rounding a group of inputs to few bits for inputs that go together, as PyTorch sees it; feedback.h says what is minimised.

All tensors are float32 on a CPU; an output's result does not depend on the other outputs. Instruction sets differ where one has a
fused multiply-add and the other has not. Wrong sizes or types raise ValueError.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.native.kernels import GROUP_INPUTS, _need
from hasten.native.loader import NativeLibrary, check


@dataclass(frozen=True, slots=True)
class FittedGroup:
    """``codes`` and ``values`` (code * scale + offset, within int8) [outputs, 32], ``scale`` (from 1) and ``offset`` [outputs], all
    whole numbers in the ranges of ``PackedProgressive``; ``error`` [outputs]. What lies behind the group's inputs is not set."""

    codes: Tensor
    values: Tensor
    scale: Tensor
    offset: Tensor
    error: Tensor


def fit_group(
    library: NativeLibrary,
    weights: Tensor,
    targets: Tensor,
    factor: Tensor,
    cost: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    bits: int = 4,
) -> FittedGroup:
    """Round ``weights`` [outputs, n], n from 1 to 32, in units of int8, to codes of ``bits``. ``targets`` [outputs, n] are the
    weights and what errors of earlier groups ask of them, ``factor`` [n, n] (unit upper triangle) and ``cost`` [n] those of H =
    factor diag(cost) factor^T. ``start``: scale and offset [outputs] to search around instead of all over the range."""
    outputs, count = weights.shape
    padded_weights, padded_targets = _padded(weights), _padded(targets)
    transposed = _padded(torch.nn.functional.pad(factor.T, (0, 0, 0, GROUP_INPUTS - count)))
    costs = torch.nn.functional.pad(cost, (0, GROUP_INPUTS - count))
    codes, values = torch.empty(outputs, GROUP_INPUTS), torch.empty(outputs, GROUP_INPUTS)
    scale, offset = (torch.empty(outputs), torch.empty(outputs)) if start is None else (start[0].clone(), start[1].clone())
    error = torch.empty(outputs)
    group = outputs, GROUP_INPUTS
    inputs = (
        _need(padded_weights, torch.float32, group),
        _need(padded_targets, torch.float32, group),
        _need(transposed, torch.float32, (GROUP_INPUTS, GROUP_INPUTS)),
        _need(costs, torch.float32, (GROUP_INPUTS,)),
    )
    results = codes.data_ptr(), values.data_ptr(), *(_need(item, torch.float32, (outputs,)) for item in (scale, offset, error))
    check(library.call["hst_progressive_fit"](bits, *inputs, outputs, count, int(start is not None), *results))
    return FittedGroup(codes, values, scale, offset, error)


def descend_group(library: NativeLibrary, fitted: FittedGroup, moments: Tensor, slopes: Tensor, passes: int, bits: int = 4) -> None:
    """Move codes and values of ``fitted`` where the error is least, one after the other, ``passes`` times. ``moments`` [n, n] is H,
    ``slopes`` [outputs, n] half the error's fall for each unit of each value."""
    outputs, count = slopes.shape
    padded = _padded(torch.nn.functional.pad(moments, (0, 0, 0, GROUP_INPUTS - count)))
    padded_slopes = _padded(slopes)
    group = outputs, GROUP_INPUTS
    inputs = (
        _need(padded, torch.float32, (GROUP_INPUTS, GROUP_INPUTS)),
        _need(padded_slopes, torch.float32, group),
        _need(fitted.scale, torch.float32, (outputs,)),
        _need(fitted.offset, torch.float32, (outputs,)),
    )
    results = _need(fitted.codes, torch.float32, group), _need(fitted.values, torch.float32, group)
    check(library.call["hst_progressive_descend"](bits, *inputs, outputs, count, passes, *results))


def _padded(rows: Tensor) -> Tensor:
    """Rows of 32, in memory of their own order."""
    return torch.nn.functional.pad(rows, (0, GROUP_INPUTS - rows.shape[1])).contiguous()
