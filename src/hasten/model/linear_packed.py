"""Four-bit projections of the native kernels: made once from float rows, kept on disk as packed, loaded as they lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.model.hadamard import hadamard_block, rotate
from hasten.model.linear_rounding import Rounded, round_with_feedback
from hasten.native.kernels import PackedLinear4, round_progressive
from hasten.native.loader import NativeLibrary, load
from hasten.native.memory import aligned_bytes

PACKED_LAYOUT = "packed-tiles-1"  # another layout is another tensor of a converted file; that of native/linear.h


def kernels() -> NativeLibrary:
    """The native library. Raises ConfigError where it is not in use."""
    library = load()
    if library is None:
        raise ConfigError(
            "precision int4 needs the native kernels, which are not in use here ('hasten doctor' says why); use --precision auto."
        )
    return library


def packed4_bytes(outputs: int, inputs: int) -> int:
    return PackedLinear4.packed_bytes(kernels(), outputs, inputs)


def packed4_room(outputs: int, inputs: int) -> Tensor:
    """Memory for a packed projection, as the kernels like to stream it: uint8 [packed4_bytes]."""
    return aligned_bytes(packed4_bytes(outputs, inputs))


def pack4(pieces: Iterator[Tensor], outputs: int) -> tuple[Tensor, Tensor]:
    """Rotate and round float32 row pieces to four bits (QoQ's progressive groups, 2405.04532, section 4.1): packed bytes and
    float32 scales [outputs]."""
    library = kernels()
    rounded = [round_progressive(library, rotate(piece, hadamard_block(piece.shape[1]))) for piece in pieces]
    whole = Rounded(*(torch.cat(part) for part in zip(*rounded, strict=True)))
    assert whole.scale.shape[0] == outputs, "the pieces are the whole projection"
    return _packed(library, whole), whole.scale


def pack4_calibrated(pieces: Iterator[Tensor], moments: Tensor) -> tuple[Tensor, Tensor]:
    """As ``pack4``, rounded for inputs (rotated) whose mean of x x^T is ``moments`` [inputs, inputs]. See ``linear_rounding``."""
    block = hadamard_block(moments.shape[0])
    library = kernels()
    whole = round_with_feedback(library, torch.cat([rotate(piece, block) for piece in pieces]), moments)
    return _packed(library, whole), whole.scale


def _packed(library: NativeLibrary, whole: Rounded) -> Tensor:
    block = hadamard_block(whole.codes.shape[1])
    return PackedLinear4(library, whole.codes, whole.group_scale, whole.group_offset, whole.scale, None, block).packed


def linear4(packed: Tensor, scale: Tensor, bias: Tensor | None, inputs: int) -> PackedLinear4:
    """The projection that ``pack4`` made."""
    return PackedLinear4.from_packed(kernels(), packed, scale, bias, inputs, hadamard_block(inputs))
