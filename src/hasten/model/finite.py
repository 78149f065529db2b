"""What may not be NaN or infinite: small tensors that reach every row. Integer kernels round a NaN to some integer, so that nothing
behind them shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core.errors import CorruptModel


def finite(tensor: Tensor, name: str) -> Tensor:
    """``tensor``. Raises CorruptModel where it holds NaN or infinity; for norms, scales and biases, not for whole matrices."""
    if not torch.isfinite(tensor).all():
        raise CorruptModel(f"The model's tensor '{name}' holds NaN or infinity; its file is damaged, so fetch the model again.")
    return tensor
