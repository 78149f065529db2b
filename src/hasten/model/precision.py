"""Precisions: in what form weights are kept and in what form rows flow between layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Precision:
    """``weights`` is the dtype of projection weights (in int4 and int3, of what their ``bits`` stand for; in file and q4_0, of the
    rows), ``stream`` that of the residual stream, norms and logits, ``cache`` that of keys and values, ``embedding`` that of the
    embedding table (which file and q4_0 keep as it lies on disk)."""

    name: str
    weights: torch.dtype
    stream: torch.dtype
    cache: torch.dtype
    embedding: torch.dtype
    bits: int = 8  # of projection weights, where they are our own integers

    @property
    def quantised(self) -> bool:
        """Whether weights are integers, and rows are rounded to integers for each product."""
        return self.weights is torch.int8


INT8 = Precision("int8", torch.int8, torch.float32, torch.float16, torch.bfloat16)
INT4 = Precision("int4", torch.int8, torch.float32, torch.float16, torch.bfloat16, 4)
INT3 = Precision("int3", torch.int8, torch.float32, torch.float16, torch.bfloat16, 3)
FILE = Precision("file", torch.int8, torch.float32, torch.float16, torch.float32)
Q4_0 = Precision("q4_0", torch.int8, torch.float32, torch.float16, torch.float32)
BF16 = Precision("bf16", torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16)
FP32 = Precision("fp32", torch.float32, torch.float32, torch.float32, torch.float32)
FP64 = Precision("fp64", torch.float64, torch.float64, torch.float64, torch.float64)
CACHE_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
_BY_NAME = {precision.name: precision for precision in (INT8, INT4, INT3, FILE, Q4_0, BF16, FP32, FP64)}


def named(name: str) -> Precision:
    """The precision of that name; there is one but for ``auto``."""
    return _BY_NAME[name]
