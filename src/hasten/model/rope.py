"""Rotary position embedding (RoFormer, 2104.09864) with the context extensions that public models use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.model.description import ModelDescription, RopeScaling


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling, context_length: int) -> tuple[Tensor, float]:
    """float64 [head_dim / 2] radians a position, and the factor on cosine and sine (1 but for YaRN)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = theta**-exponents
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if scaling.kind == "yarn":
        factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
        return _yarn(frequencies, head_dim, theta, scaling, context_length), factor
    return frequencies, 1.0


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: keep short wavelengths, divide long ones by the factor, blend linearly in between."""
    wavelengths = 2 * math.pi / frequencies
    ratio = scaling.original_context / wavelengths
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    blend = ((ratio - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (blend + (1.0 - blend) / scaling.factor)


def _yarn(frequencies: Tensor, head_dim: int, theta: float, scaling: RopeScaling, context_length: int) -> Tensor:
    """YaRN (2309.00071, section 3.2, "NTK-by-parts")."""
    original = scaling.original_context or context_length

    def dimension(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), head_dim - 1)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)
    return frequencies * (1.0 - ramp) + frequencies / scaling.factor * ramp


class RotaryTable:
    """Cosine and sine of every position, made in pieces of fixed size so that a position's values never depend on who asked.

    ``rows(positions)`` returns two [rows, head_dim / 2] tensors.
    """

    PIECE = 4096

    def __init__(self, frequencies: Tensor, factor: float, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies = frequencies
        self._factor = factor
        self._dtype = dtype
        self._device = device
        self._cos = torch.empty(0, frequencies.numel(), dtype=dtype, device=device)
        self._sin = self._cos

    def rows(self, positions: Tensor, highest: int) -> tuple[Tensor, Tensor]:
        """``positions`` int64 [rows]; ``highest`` is their maximum, known to the caller."""
        while self._cos.shape[0] <= highest:
            self._extend()
        return self._cos[positions], self._sin[positions]

    def _extend(self) -> None:
        start = self._cos.shape[0]
        positions = torch.arange(start, start + self.PIECE, dtype=torch.float64)
        angles = positions[:, None] * self._frequencies[None, :]
        self._cos = torch.cat([self._cos, (angles.cos() * self._factor).to(self._dtype).to(self._device)])
        self._sin = torch.cat([self._sin, (angles.sin() * self._factor).to(self._dtype).to(self._device)])


def rotary_tables(description: ModelDescription, dtype: torch.dtype, device: torch.device) -> tuple[RotaryTable, RotaryTable]:
    """The table of full-attention layers and that of sliding layers (the same one where the model has one base); where some layers
    rotate nothing, the second one is theirs."""
    frequencies, factor = inverse_frequencies(
        description.head_dim, description.rope_theta, description.rope_scaling, description.context_length
    )
    if description.frequency_factors:
        frequencies = frequencies / torch.tensor(description.frequency_factors, dtype=torch.float64)
    full = RotaryTable(frequencies, factor, dtype, device)
    if description.unrotated:
        return full, RotaryTable(torch.zeros_like(frequencies), 1.0, dtype, device)
    if not description.local_rope_theta:
        return full, full
    local, _ = inverse_frequencies(description.head_dim, description.local_rope_theta, RopeScaling(), description.context_length)
    return full, RotaryTable(local, 1.0, dtype, device)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [rows, heads, head_dim] by [rows, head_dim / 2], pairing dimension i with i + head_dim / 2."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
