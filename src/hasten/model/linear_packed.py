"""Projections of few bits of the native kernels: made once from float rows, kept on disk as packed, loaded as they lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.model.hadamard import hadamard_block, rotate
from hasten.model.linear_rounding import Rounded, round_with_feedback
from hasten.native.kernels import PackedProgressive, round_progressive
from hasten.native.loader import NativeLibrary, load
from hasten.native.memory import aligned_bytes

LAYOUTS = {4: "packed-tiles-2", 3: "packed-triples-2"}  # another layout is another tensor of a converted file; native/linear.h's


def kernels() -> NativeLibrary:
    """The native library. Raises ConfigError where it is not in use."""
    library = load()
    if library is None:
        raise ConfigError(
            "precisions int4 and int3 need the native kernels, which are not in use here ('hasten doctor' says why); "
            "use --precision auto."
        )
    return library


def few_bits_run() -> bool:
    """Whether a kernel multiplies weights of few bits here."""
    return load() is not None


def packed_bytes(outputs: int, inputs: int, bits: int) -> int:
    return PackedProgressive.packed_bytes(kernels(), bits, outputs, inputs)


def packed_room(outputs: int, inputs: int, bits: int) -> Tensor:
    """Memory for a packed projection, as the kernels like to stream it: uint8 [packed_bytes]."""
    return aligned_bytes(packed_bytes(outputs, inputs, bits))


def pack(pieces: Iterator[Tensor], outputs: int, bits: int) -> tuple[Tensor, Tensor]:
    """Rotate and round float32 row pieces to few bits (QoQ's progressive groups, 2405.04532, section 4.1): packed bytes and
    float32 scales [outputs]."""
    library = kernels()
    rounded = [round_progressive(library, rotate(piece, hadamard_block(piece.shape[1])), bits) for piece in pieces]
    whole = Rounded(*(torch.cat(part) for part in zip(*rounded, strict=True)))
    assert whole.scale.shape[0] == outputs, "the pieces are the whole projection"
    return _packed(library, whole, bits), whole.scale


def pack_calibrated(pieces: Iterator[Tensor], moments: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As ``pack``, rounded for inputs (rotated) whose mean of x x^T is ``moments`` [inputs, inputs]. See ``linear_rounding``."""
    block = hadamard_block(moments.shape[0])
    library = kernels()
    whole = round_with_feedback(library, torch.cat([rotate(piece, block) for piece in pieces]), moments, bits)
    return _packed(library, whole, bits), whole.scale


def rounded_again(codes: Tensor, scale: Tensor, bits: int) -> PackedProgressive:
    """int8 ``codes`` [outputs, inputs] (rotated) with float32 ``scale`` [outputs] in fewer bits, to the nearest: a projection."""
    library = kernels()
    whole = Rounded(*round_progressive(library, codes.float().mul_(scale[:, None]), bits))
    return packed_linear(_packed(library, whole, bits), whole.scale, None, codes.shape[1], bits)


def _packed(library: NativeLibrary, whole: Rounded, bits: int) -> Tensor:
    block = hadamard_block(whole.codes.shape[1])
    layer = PackedProgressive(library, whole.codes, whole.group_scale, whole.group_offset, whole.scale, None, block, bits)
    return layer.packed


def packed_linear(packed: Tensor, scale: Tensor, bias: Tensor | None, inputs: int, bits: int) -> PackedProgressive:
    """The projection that ``pack`` made."""
    return PackedProgressive.from_packed(kernels(), packed, scale, bias, inputs, hadamard_block(inputs), bits)
