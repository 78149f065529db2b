"""GGUF's block formats as float32, bit for bit what the reference Python package of the format gives.

A row is a run of blocks; each block holds 32 or 256 small integers with shared scales. Layouts: ``ggml-common.h`` of ggml.
Pure functions of bytes: they read nothing, they trust that the caller gives whole blocks. Numpy and in place: a dozen passes
over what fits in the processor's cache, where waking threads would cost more than it brings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["READABLE", "chunk_values", "dequantise"]

Kind = GGMLQuantizationType
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def dequantise(raw: Tensor, kind: GGMLQuantizationType, out: Tensor) -> None:
    """Decode ``raw``, uint8 [rows, bytes of a row], into ``out``, float32 [rows, columns]; ``kind`` in READABLE.

    Both are contiguous and in main memory. Scales that are not finite give values that are not finite.
    """
    if kind in PLAIN:
        out.copy_(raw.view(PLAIN[kind]))
        return
    length, size = GGML_QUANT_SIZES[kind]
    with np.errstate(all="ignore"):
        BLOCKS[kind](raw.numpy().reshape(-1, size), out.numpy().reshape(-1, length))


def chunk_values(kind: GGMLQuantizationType) -> int:
    """How many values to decode at a time."""
    return 1 << 22 if kind in PLAIN else 1 << 17


def _half(blocks: Bytes, index: int) -> Floats:
    """The float16 that stands ``index`` halves into each block, float32 [blocks, 1]."""
    return blocks.view(np.float16)[:, index : index + 1].astype(np.float32)


def _nibbles(packed: Bytes, out: Floats) -> None:
    """Low halves of the bytes [..., n], then their high halves, as numbers into [..., 2 n]."""
    length = packed.shape[-1]
    out[..., :length] = packed & 15
    out[..., length:] = packed >> 4


def _nibbles_and_bits(packed: Bytes, bits: Bytes, out: Floats) -> None:
    """As ``_nibbles`` for 16 bytes a block, with a fifth bit each from four bytes, lowest bit first."""
    high = np.unpackbits(bits, axis=-1, bitorder="little") << 4
    out[:, :16] = (packed & 15) | high[:, :16]
    out[:, 16:] = (packed >> 4) | high[:, 16:]


def _q4_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8.0
    out *= _half(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _half(blocks, 0)
    out += _half(blocks, 1)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    _nibbles_and_bits(blocks[:, 6:], blocks[:, 2:6], out)
    out -= 16.0
    out *= _half(blocks, 0)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    _nibbles_and_bits(blocks[:, 8:], blocks[:, 4:8], out)
    out *= _half(blocks, 0)
    out += _half(blocks, 1)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks[:, 2:].view(np.int8)
    out *= _half(blocks, 0)


def _scale_groups(blocks: Bytes, out: Floats) -> None:
    """Apply scale and minimum to the eight groups of 32 in each 256-block.

    Twelve bytes hold two times eight 6-bit numbers: the first four of each stand in the low six bits of bytes 0-3 and 4-7,
    the others have their low four bits in bytes 8-11 and their high two bits atop bytes 0-3 and 4-7.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=1)
    groups = out.reshape(-1, 8, 32)
    groups *= (_half(blocks, 0) * scale)[..., None]
    groups -= (_half(blocks, 1) * minimum)[..., None]


def _q4_k(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 16:].reshape(-1, 4, 32), out.reshape(-1, 4, 64))
    _scale_groups(blocks, out)


def _q5_k(blocks: Bytes, out: Floats) -> None:
    high, packed = blocks[:, 16:48], blocks[:, 48:].reshape(-1, 4, 32)
    groups = out.reshape(-1, 8, 32)
    for group in range(8):
        low = packed[:, group // 2] >> 4 if group % 2 else packed[:, group // 2] & 15
        groups[:, group] = low | (((high >> group) & 1) << 4)
    _scale_groups(blocks, out)


def _q6_k(blocks: Bytes, out: Floats) -> None:
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 32)
    groups = out.reshape(-1, 2, 4, 32)
    for group in range(4):
        packed = low[:, :, group % 2]
        groups[:, :, group] = (packed >> 4 if group // 2 else packed & 15) | (((high >> 2 * group) & 3) << 4)
    out -= 32.0
    scaled = out.reshape(-1, 16, 16)
    scaled *= (_half(blocks, 104) * blocks[:, 192:208].view(np.int8))[..., None]


PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
BLOCKS: dict[GGMLQuantizationType, Callable[[Bytes, Floats], None]] = {
    Kind.Q4_0: _q4_0,
    Kind.Q4_1: _q4_1,
    Kind.Q5_0: _q5_0,
    Kind.Q5_1: _q5_1,
    Kind.Q8_0: _q8_0,
    Kind.Q4_K: _q4_k,
    Kind.Q5_K: _q5_k,
    Kind.Q6_K: _q6_k,
}
READABLE = frozenset(PLAIN) | frozenset(BLOCKS)
