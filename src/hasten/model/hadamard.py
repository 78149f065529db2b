"""Block Hadamard rotation: y = x R and W' = W R give W' y^T = W x^T, and spread outliers over their block.

R is block-diagonal with orthonormal Sylvester-Hadamard blocks, so it is its own inverse. One int8 scale a token then costs no
measurable perplexity (docs/models.md); the idea is QuaRot's (2404.00456, section 3), applied per projection.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

LARGEST_BLOCK = 512


def hadamard_block(inputs: int) -> int:
    """The largest power of two that divides ``inputs``, at most 512."""
    return min(inputs & -inputs, LARGEST_BLOCK)


@lru_cache(maxsize=32)
def hadamard_matrix(block: int, dtype: torch.dtype) -> Tensor:
    """[block, block], orthonormal and symmetric; ``block`` is a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    scaled: Tensor = matrix * block**-0.5
    return scaled.to(dtype)


def rotate(rows: Tensor, block: int) -> Tensor:
    """Rotate each row of [rows, inputs] in blocks; same shape and dtype."""
    if block == 1:
        return rows
    return (rows.reshape(-1, block) @ hadamard_matrix(block, rows.dtype)).view_as(rows)
