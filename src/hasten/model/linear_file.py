"""Precision ``file``: projections that run with the codes and scales of a GGUF file as they are, nothing rounded a second time. And
``q4_0``: any weights, rounded to blocks of that format while they are read.

Rows are rounded to int8 in groups of 32, unrotated: the codes live in the model's own basis. Tensors that hold no codes (F32, F16,
BF16) are not this file's; see ``weights``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.model.description import Activation
from hasten.model.linear import Linear, gated, rms_norm
from hasten.model.precision import BF16, FILE, FP32, INT8, Precision, named
from hasten.native.grouped import KINDS, STRIP_OUTPUTS, GroupedLinear, GroupedMatrix
from hasten.native.loader import NativeLibrary, load

PIECE_BYTES = 32 << 20
BLOCK_INPUTS = 32  # of Q4_0 and Q8_0

Part = GroupedMatrix | Linear  # of a projection: codes, or whatever else multiplies


@runtime_checkable
class BlockSource(Protocol):
    """A weight source whose tensors lie on disk in GGUF's block formats."""

    def names(self) -> set[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def stored_dtype(self, name: str) -> str: ...
    def read_blocks(self, name: str, start: int, stop: int) -> Tensor: ...


def has_codes(stored_dtype: str) -> bool:
    """Whether a tensor of this type runs with its own codes."""
    return stored_dtype.upper() in KINDS


def tensors_without_codes(source: BlockSource) -> dict[str, str]:
    """Names and stored types of the matrices that precision ``file`` has to convert, because they hold no codes."""
    types = {name: source.stored_dtype(name) for name in source.names() if len(source.shape(name)) > 1}
    return {name: kind for name, kind in types.items() if not has_codes(kind)}


def file_runs_best(source: Any) -> bool:
    """Whether ``source`` runs faster here with its own codes than in int8: where every matrix holds codes, and the processor has
    AVX2 or, up to some twelve rows, AVX-512 VNNI. With AMX int8 verifies many rows for less (docs/benchmarks.md)."""
    library = load()
    fast = library is not None and library.isa in ("avx2", "vnni")
    return fast and isinstance(source, BlockSource) and not tensors_without_codes(source)


def choose_precision(name: str, device: torch.device, codes_run_best: bool = False) -> Precision:
    """``auto`` is bf16 on a GPU. On a CPU it is file where its ``codes_run_best`` (``file_runs_best``), else int8; without
    native kernels what PyTorch multiplies fastest. Raises ConfigError where the device cannot run what was asked for."""
    if name == "auto":
        if device.type != "cpu":
            return BF16
        return _without_kernels() if load() is None else FILE if codes_run_best else INT8
    precision = named(name)
    if precision.quantised and device.type != "cpu":
        raise ConfigError(f"precision {name} runs on a CPU only, not on {device}; use bf16 or fp32 there.")
    return precision


def _without_kernels() -> Precision:
    """bf16 where the processor has AVX-512; elsewhere PyTorch emulates it, and a prompt takes longer than in fp32. Its int8
    products take some fifty times as long as either for a single row."""
    return BF16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else FP32


def drafts_in_few_bits(name: str, device: torch.device) -> bool:
    """Whether a draft model runs in fewer bits than its target, whose precision is called ``name``: beside integer weights, where
    there are native kernels."""
    integers = name == "auto" or named(name).quantised
    return integers and device.type == "cpu" and load() is not None


def block_source(source: Any) -> BlockSource:
    """``source``, when precision ``file`` can run it here. Raises ConfigError, one sentence, when it cannot."""
    if not isinstance(source, BlockSource):
        raise ConfigError("precision file runs the codes of a GGUF file, and this model is a folder of safetensors; use int8.")
    matrices = [name for name in source.names() if len(source.shape(name)) > 1]
    if len(tensors_without_codes(source)) == len(matrices):
        kinds = ", ".join(sorted({source.stored_dtype(name).upper() for name in matrices}))
        raise ConfigError(f"precision file needs a file of quantised weights, and this one holds {kinds} only; use bf16 or int8.")
    _kernels()
    return source


def _kernels() -> NativeLibrary:
    library = load()
    if library is None:
        raise ConfigError(
            "This precision needs the native kernels, which are not in use here ('hasten doctor' says why); use --precision auto."
        )
    return library


def read_matrix(source: BlockSource, name: str) -> GroupedMatrix:
    """The codes of one tensor, packed for the kernels a bounded piece at a time. Raises CorruptModel."""
    outputs, inputs = source.shape(name)
    matrix = GroupedMatrix(_kernels(), source.stored_dtype(name).upper(), outputs, inputs)
    return _filled(matrix, matrix.row_bytes, partial(source.read_blocks, name))


def round_to_blocks(weights: Tensor, kind: str) -> Tensor:
    """Blocks of Q4_0 or Q8_0 (ggml-common.h of ggml) for float32 [rows, inputs], inputs a multiple of 32: uint8 [rows, bytes of a
    row]. Q4_0's scale takes a block's largest weight to the end of the grid that has a step more, -8; Q8_0's to 127."""
    groups = weights.view(-1, BLOCK_INPUTS)
    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    scale = (largest / -8.0 if kind == "Q4_0" else largest.abs() / 127.0).to(torch.float16)
    step = scale.float()
    scaled = groups * torch.where(step == 0, step, 1.0 / step)
    if kind == "Q4_0":
        codes = scaled.add_(8.5).clamp_(0.0, 15.0).to(torch.uint8)  # cutting off what follows the point rounds
        codes = codes[:, : BLOCK_INPUTS // 2] | codes[:, BLOCK_INPUTS // 2 :] << 4
    else:
        codes = scaled.round_().clamp_(-127.0, 127.0).to(torch.int8).view(torch.uint8)
    return torch.cat([scale.view(torch.uint8), codes], 1).view(weights.shape[0], -1)


def rounded_matrix(read: Callable[[int, int], Tensor], kind: str, outputs: int, inputs: int) -> GroupedMatrix:
    """Rows that ``read(start, stop)`` gives, float32, rounded to blocks of Q4_0 or Q8_0 a bounded piece at a time."""
    matrix = GroupedMatrix(_kernels(), kind, outputs, inputs)
    return _filled(matrix, 4 * inputs, lambda start, stop: round_to_blocks(read(start, stop), kind))


def _filled(matrix: GroupedMatrix, row_bytes: int, blocks: Callable[[int, int], Tensor]) -> GroupedMatrix:
    """``matrix`` with the rows that ``blocks(start, stop)`` gives; to make a row of them takes so many bytes."""
    step = max(1, PIECE_BYTES // (row_bytes * STRIP_OUTPUTS)) * STRIP_OUTPUTS
    for start in range(0, matrix.outputs, step):
        stop = min(start + step, matrix.outputs)
        matrix.fill(blocks(start, stop), start)
    return matrix


def file_linear(parts: list[Part], bias: Tensor | None) -> Linear:
    """One projection of stacked parts: one kernel where all hold codes, else each by itself. Other parts have their bias."""
    matrices = [part for part in parts if isinstance(part, GroupedMatrix)]
    if len(matrices) == len(parts):
        return GroupedLinear(_kernels(), matrices, bias)
    made: list[Linear] = []
    row = 0
    for part in parts:
        own = None if bias is None else bias[row : row + part.outputs]
        made.append(GroupedLinear(_kernels(), [part], own) if isinstance(part, GroupedMatrix) else part)
        row += part.outputs
    return JoinedLinear(made)


class JoinedLinear:
    """Projections of the same rows, their outputs one after the other."""

    def __init__(self, parts: list[Linear]) -> None:
        self._parts = parts
        self.outputs, self.inputs = sum(part.outputs for part in parts), parts[0].inputs

    @property
    def bytes(self) -> int:
        return sum(getattr(part, "bytes", 0) for part in self._parts)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = torch.cat([part(x) for part in self._parts], dim=1)
        return out if residual is None else out.add_(residual)

    def after_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self(rms_norm(x, weight, eps))

    def after_gate(self, gate_up: Tensor, activation: Activation, residual: Tensor | None = None) -> Tensor:
        return self(gated(gate_up, activation), residual)


class FileEmbedding:
    """An embedding table that stays in its codes; rows become floats when they are asked for."""

    def __init__(self, matrix: GroupedMatrix) -> None:
        self.matrix = matrix

    def __getitem__(self, tokens: Tensor) -> Tensor:
        """float32 [len(tokens), hidden] for ``tokens`` int64."""
        return self.matrix.rows(tokens)


def read_embedding(source: BlockSource) -> FileEmbedding | Tensor:
    """The table in its codes, or in its own floating dtype."""
    kind = source.stored_dtype("embedding")
    if has_codes(kind):
        return FileEmbedding(read_matrix(source, "embedding"))
    rows, columns = source.shape("embedding")
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    return source.read_blocks("embedding", 0, rows).view(dtype).view(rows, columns)


class GroupedRows:
    """Makes a projection of some rows of a head that is in its codes; a logit has the same bits as in the whole head."""

    def __init__(self, head: GroupedLinear) -> None:
        (self._matrix,) = head.parts

    def __call__(self, ids: npt.NDArray[np.int64]) -> Linear:
        return GroupedLinear(_kernels(), [self._matrix.pick(torch.from_numpy(ids))], None)


def head_in_codes(head: Linear) -> GroupedRows | None:
    """How rows of ``head`` are picked where it is in its codes."""
    return GroupedRows(head) if isinstance(head, GroupedLinear) else None
