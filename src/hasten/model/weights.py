"""From a weight source to a decoder: read piece by piece, fuse, convert. Never a second full-precision copy in memory.

A piece is at most ``PIECE_BYTES`` of float32 rows, so that the peak is the finished model plus a few pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hasten.core.damaged import set_aside
from hasten.core.progress import Progress, silent
from hasten.model.conversion import ConvertedReader, ConvertedWriter, DamagedConversion, Planned, is_converted
from hasten.model.decoder import Decoder, DecoderWeights, EmbeddingTable, LayerWeights
from hasten.model.description import ModelDescription
from hasten.model.finite import finite
from hasten.model.hadamard import hadamard_block, rotate
from hasten.model.linear import DenseLinear, Linear, int8_linear, make_mlp
from hasten.model.linear_file import (
    BLOCK_INPUTS,
    BlockSource,
    FileEmbedding,
    Part,
    block_source,
    file_linear,
    has_codes,
    read_embedding,
    read_matrix,
    rounded_matrix,
)
from hasten.model.linear_packed import LAYOUTS, pack, packed_bytes, packed_linear, packed_room
from hasten.model.precision import FILE, Q4_0, Precision

PIECE_BYTES = 64 << 20
NARROW = 1024  # hidden size below which int4 keeps more bits
MOST_UNPACKED = 2  # projections in memory both as read and as packed


class Weights(Protocol):
    """What this file needs of a weight source (see ``loaders``)."""

    @property
    def description(self) -> ModelDescription: ...
    @property
    def fingerprint(self) -> str: ...
    def names(self) -> set[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """One projection of the decoder and the source tensors that are stacked to make it."""

    name: str
    parts: tuple[str, ...]
    outputs: int
    inputs: int


def projections(source: Weights) -> list[FusedLinear]:
    """Every projection of the decoder in the order it is built: the head first, while there is most room for its copy as read."""
    out = [_fused(source, "head", ("embedding" if source.description.tied_head else "head",))]
    for index in range(source.description.layers):
        out += layer_projections(source, index)
    return out


def layer_projections(source: Weights, index: int) -> list[FusedLinear]:
    """The projections of one layer in the order in which rows pass them."""
    base = f"layers.{index}."
    parts = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
    return [_fused(source, base + name, tuple(base + part for part in stacked)) for name, stacked in parts.items()]


def projection_bias(source: Weights, linear: FusedLinear, stream: torch.dtype) -> Tensor | None:
    """[outputs] in the stream dtype, or None."""
    names = source.names()
    biases = [f"{part}_bias" for part in linear.parts]
    found = [finite(source.read(name), name).to(stream) for name in biases if name in names]
    return torch.cat(found) if found else None


def projection_rows(source: Weights, linear: FusedLinear) -> Iterator[Tensor]:
    """Its weights as float32 rows, a bounded number at a time."""
    return _pieces(source, linear.parts)


def embedding_table(source: Weights, dtype: torch.dtype) -> Tensor:
    """[vocabulary, hidden]."""
    return torch.cat([piece.to(dtype) for piece in _pieces(source, ("embedding",))])


def conversion_plan(source: Weights, precision: Precision) -> list[Planned]:
    """What a converted file of this source holds, in the order in which it is written."""
    plan = [Planned("embedding", source.shape("embedding"), torch.bfloat16)]
    for linear in projections(source):
        if (bits := projection_bits(linear, precision)) < 8:
            size = packed_bytes(linear.outputs, linear.inputs, bits)
            plan.append(Planned(f"{linear.name}.{LAYOUTS[bits]}", (size,), torch.uint8))
        else:
            plan.append(Planned(f"{linear.name}.codes", (linear.outputs, linear.inputs), torch.int8))
        plan.append(Planned(f"{linear.name}.scale", (linear.outputs,), torch.float32))
    return plan


def projection_bits(linear: FusedLinear, precision: Precision) -> int:
    """Bits of this projection's weights in our own integers. The head keeps eight: its error goes straight into every logit. In
    narrow models in int4 ``down`` too, the projection that loses most by rounding (docs/models.md)."""
    narrow_down = linear.name.endswith(".down") and linear.outputs < NARROW and precision.bits == 4
    return 8 if linear.name == "head" or narrow_down else precision.bits


def _fused(source: Weights, name: str, parts: tuple[str, ...]) -> FusedLinear:
    shapes = [source.shape(part) for part in parts]
    return FusedLinear(name, parts, sum(shape[0] for shape in shapes), shapes[0][1])


def _pieces(source: Weights, parts: tuple[str, ...]) -> Iterator[Tensor]:
    """The rows of the stacked parts, float32, a bounded number at a time."""
    for part in parts:
        rows, columns = source.shape(part)
        step = max(1, PIECE_BYTES // (4 * columns))
        for start in range(0, rows, step):
            yield source.read(part, start, min(start + step, rows))


def load_decoder(
    source: Weights, precision: Precision, device: torch.device, converted: Path | None, progress: Progress = silent
) -> Decoder:
    """Build the decoder. ``converted`` is where our own integer weights are kept between loads (None: nowhere). Where what is kept
    turns out to be damaged it is set aside, and the source converted without being kept.

    Raises ConfigError where the precision does not fit source or machine, CorruptModel where norms, biases, scales are not finite.
    """
    try:
        return _load(source, precision, device, converted, progress)
    except DamagedConversion as problem:
        assert converted is not None
        set_aside(converted, str(problem))
        return _load(source, precision, device, None, progress)


def _load(source: Weights, precision: Precision, device: torch.device, converted: Path | None, progress: Progress) -> Decoder:
    make: _Maker
    if precision is FILE:
        block_source(source)
        make = _FileMaker(source)
    elif precision is Q4_0:
        make = _FourBitMaker(source)
    elif precision.quantised:
        make = _IntegerMaker(source, precision, converted)
    else:
        make = _DenseMaker(source, precision, device)
    try:
        return _assemble(source, precision, device, make, progress)
    except BaseException:
        make.abandon()
        raise


def _assemble(source: Weights, precision: Precision, device: torch.device, make: _Maker, progress: Progress) -> Decoder:
    names = source.names()

    def vector(name: str) -> Tensor | None:
        return needed(name) if name in names else None

    def needed(name: str) -> Tensor:
        return finite(source.read(name), name).to(device, precision.stream)

    def bias(linear: FusedLinear) -> Tensor | None:
        found = projection_bias(source, linear, precision.stream)
        return None if found is None else found.to(device)

    planned = projections(source)
    total = sum(linear.outputs * linear.inputs for linear in planned)
    done = 0
    embedding = make.embedding(precision.embedding)
    pending: dict[str, Future[Linear]] = {}
    with ThreadPoolExecutor(max_workers=1) as packer:  # packs one projection while the next is read
        for linear in planned:
            pending[linear.name] = packer.submit(make.linear(linear, bias(linear)))
            if len(pending) > MOST_UNPACKED:
                list(pending.values())[-MOST_UNPACKED - 1].result()
            done += linear.outputs * linear.inputs
            progress("loading weights", done, total)
    built = {name: future.result() for name, future in pending.items()}
    make.finish()
    layers = [
        LayerWeights(
            attention_norm=needed(f"{base}attention_norm"),
            qkv=built[f"{base}qkv"],
            key_bias=vector(f"{base}k_bias"),
            query_norm=vector(f"{base}q_norm"),
            key_norm=vector(f"{base}k_norm"),
            output=built[f"{base}o"],
            post_attention_norm=vector(f"{base}post_attention_norm"),
            mlp_norm=needed(f"{base}mlp_norm"),
            mlp=make_mlp(built[f"{base}gate_up"], built[f"{base}down"], source.description.activation),
            post_mlp_norm=vector(f"{base}post_mlp_norm"),
        )
        for base in (f"layers.{index}." for index in range(source.description.layers))
    ]
    weights = DecoderWeights(embedding, layers, needed("final_norm"), built["head"])
    return Decoder(source.description, precision, weights)


class _Maker(Protocol):
    """How one precision is made, the embedding first and each projection once; then either ``finish`` or ``abandon``."""

    def embedding(self, dtype: torch.dtype) -> EmbeddingTable: ...

    def linear(self, linear: FusedLinear, bias: Tensor | None) -> Callable[[], Linear]:
        """Reads now; what is returned makes the projection."""
        ...

    def finish(self) -> None: ...
    def abandon(self) -> None: ...


class _DenseMaker:
    """Projections in a floating dtype, filled piece by piece."""

    def __init__(self, source: Weights, precision: Precision, device: torch.device) -> None:
        self._source, self._precision, self._device = source, precision, device

    def embedding(self, dtype: torch.dtype) -> Tensor:
        return self._stack(("embedding",), self._source.shape("embedding"), dtype)

    def linear(self, linear: FusedLinear, bias: Tensor | None) -> Callable[[], Linear]:
        return partial(DenseLinear, self._stack(linear.parts, (linear.outputs, linear.inputs), self._precision.weights), bias)

    def _stack(self, parts: tuple[str, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device=self._device)
        row = 0
        for piece in _pieces(self._source, parts):
            out[row : row + piece.shape[0]] = piece
            row += piece.shape[0]
        return out

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _IntegerMaker:
    """int8, int4 and int3 projections, from the converted file where there is one, else converted now and written there."""

    def __init__(self, source: Weights, precision: Precision, path: Path | None) -> None:
        self._source, self._precision = source, precision
        self._reader: ConvertedReader | None = None
        self._writer: ConvertedWriter | None = None
        self._buffers: list[Tensor] = []
        if path is not None:
            plan = conversion_plan(source, precision)
            if is_converted(path, plan, source.fingerprint):
                self._reader = ConvertedReader(path, plan, source.fingerprint)
            else:
                self._writer = ConvertedWriter(path, plan, source.fingerprint)

    def embedding(self, dtype: torch.dtype) -> Tensor:
        if self._reader is not None:
            return self._reader.read("embedding")
        out = embedding_table(self._source, dtype)
        self._keep(out)
        return out

    def linear(self, linear: FusedLinear, bias: Tensor | None) -> Callable[[], Linear]:
        """Reads (or converts) now; what is returned packs the projection for its kernel."""
        if (bits := projection_bits(linear, self._precision)) < 8:
            return self._packed(linear, bias, bits)
        if self._reader is not None:
            codes = self._reader.read(f"{linear.name}.codes", self._buffer(linear))
            scale = self._reader.read(f"{linear.name}.scale")
        else:
            codes, scale = quantise_weights(_pieces(self._source, linear.parts), linear.outputs, linear.inputs)
            self._keep(codes, scale)
        return partial(int8_linear, codes, finite(scale, linear.name), bias)

    def _buffer(self, linear: FusedLinear) -> Tensor | None:
        """Where codes are read to until they are packed. Used in turn: fresh memory for every projection is memory that the
        allocator keeps. A head is read once, and needs none."""
        if linear.name == "head":
            return None
        if not self._buffers:
            largest = max(item.outputs * item.inputs for item in projections(self._source) if item.name != "head")
            self._buffers = [torch.empty(largest, dtype=torch.uint8) for _ in range(MOST_UNPACKED + 1)]
        self._buffers.append(self._buffers.pop(0))
        return self._buffers[-1]

    def _packed(self, linear: FusedLinear, bias: Tensor | None, bits: int) -> Callable[[], Linear]:
        if self._reader is not None:
            packed = self._reader.read(f"{linear.name}.{LAYOUTS[bits]}", packed_room(linear.outputs, linear.inputs, bits))
            scale = self._reader.read(f"{linear.name}.scale")
        else:
            pieces = (finite(piece, linear.name) for piece in _pieces(self._source, linear.parts))
            packed, scale = pack(pieces, linear.outputs, bits)
            self._keep(packed, scale)
        return partial(packed_linear, packed, finite(scale, linear.name), bias, linear.inputs, bits)

    def _keep(self, *tensors: Tensor) -> None:
        if self._writer is not None:
            for tensor in tensors:
                self._writer.write(tensor)

    def finish(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.finish()

    def abandon(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.abandon()


class _FileMaker:
    """Projections with a GGUF file's own codes; those few that hold floats there become int8, as in precision int8."""

    def __init__(self, source: Weights) -> None:
        self._source = source
        self._table: EmbeddingTable | None = None

    def embedding(self, dtype: torch.dtype) -> EmbeddingTable:
        source = self._source
        self._table = read_embedding(source) if isinstance(source, BlockSource) else embedding_table(source, dtype)
        return self._table

    def linear(self, linear: FusedLinear, bias: Tensor | None) -> Callable[[], Linear]:
        parts: list[Part] = []
        row = 0
        for name in linear.parts:
            outputs = self._source.shape(name)[0]
            parts.append(self._part(name, None if bias is None else bias[row : row + outputs]))
            row += outputs
        return partial(file_linear, parts, bias)

    def _part(self, name: str, bias: Tensor | None) -> Part:
        source = self._source
        if name == "embedding" and isinstance(self._table, FileEmbedding):
            return self._table.matrix
        if isinstance(source, BlockSource) and self._keeps(name, source.stored_dtype(name)):
            return read_matrix(source, name)
        return self._rounded(name, bias)

    def _keeps(self, name: str, stored: str) -> bool:
        """Whether this tensor's codes are taken as they are."""
        return has_codes(stored)

    def _rounded(self, name: str, bias: Tensor | None) -> Part:
        codes, scale = quantise_weights(_pieces(self._source, (name,)), *self._source.shape(name))
        return int8_linear(codes, finite(scale, name), bias)

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _FourBitMaker(_FileMaker):
    """Every projection in blocks of four bits: a file's own where it has them, else Q4_0's. A head without codes of its own gets
    those of Q8_0; what these formats do not take becomes int8."""

    def _keeps(self, name: str, stored: str) -> bool:
        return has_codes(stored) and (name == "head" or stored.upper().startswith("Q4"))

    def _rounded(self, name: str, bias: Tensor | None) -> Part:
        outputs, inputs = self._source.shape(name)
        if inputs % BLOCK_INPUTS:
            return super()._rounded(name, bias)
        kind = "Q8_0" if name in ("embedding", "head") else "Q4_0"
        return rounded_matrix(partial(self._source.read, name), kind, outputs, inputs)


def quantise_weights(pieces: Iterator[Tensor], outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Rotate and round rows to int8, one scale an output: int8 [outputs, inputs], float32 [outputs]."""
    codes = torch.empty(outputs, inputs, dtype=torch.int8)
    scales = torch.empty(outputs)
    block = hadamard_block(inputs)
    row = 0
    for piece in pieces:
        rotated = rotate(piece, block)
        scale = (rotated.abs().amax(1) / 127.0).clamp_min_(torch.finfo(torch.float32).tiny)
        codes[row : row + piece.shape[0]] = rotated.div_(scale[:, None]).round_().to(torch.int8)
        scales[row : row + piece.shape[0]] = scale
        row += piece.shape[0]
    return codes, scales
