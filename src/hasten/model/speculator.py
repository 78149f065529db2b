"""A speculator: a small recurrent network that goes on from a target's hidden state (MLP speculator, 2404.19124, section 2;
ReDrafter, 2403.09919).

A model's last hidden state says more than which token comes next. The network is given that state and the token that was chosen
there, and makes a state in the place of the one that the model would have had; the model's own head turns it into logits, and with
the next token it goes on from its own state. It has no attention, so it reads nothing and keeps nothing of a text.

Its weights are a file in Hasten's own folder, made by ``hasten draft train`` for one model. What it guesses is verified, so that
whatever stands in such a file can cost speed and never a token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hasten.core.damaged import set_aside
from hasten.core.replacement import Replacement
from hasten.model.conversion import checksum
from hasten.model.decoder import EmbeddingTable
from hasten.model.head import IntArray, TrimmedHead
from hasten.model.linear import PACKED, DenseLinear, Linear, Mlp, int8_linear, make_mlp
from hasten.model.linear_packed import few_bits_run, pack, packed_linear
from hasten.model.precision import Precision
from hasten.model.weights import quantise_weights
from hasten.native.kernels import GrowingLinear, PackedMlp
from hasten.native.loader import load as load_library
from hasten.native.speculator import SpeculatorLevel

FORMAT = "hasten-speculator-1"
EPS = 1e-6
IDS = 8192  # of the vocabulary that its head computes, but for those of a text's own
MOST_LAYERS = 8
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class SpeculatorWeights:
    """As they were trained: float tensors by name (see ``shapes``), and the ids that the head should have, ascending. ``learnt``
    counts the tokens that they were trained on."""

    tensors: dict[str, Tensor]
    ids: IntArray
    learnt: int = 0

    @property
    def layers(self) -> int:
        return sum(name.endswith(".down") for name in self.tensors)

    @property
    def identity(self) -> str:
        """Tells networks apart: what was learnt with one says nothing of another."""
        return "-".join(f"{checksum(tensor):08x}" for _, tensor in sorted(self.tensors.items()))


def shapes(hidden: int, inner: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """What the tensors of a speculator are called, and their shapes, for a model of that hidden size; ``inner`` are the widths of
    its gated layers."""
    out: dict[str, tuple[int, ...]] = {
        "state_norm": (hidden,),
        "token_norm": (hidden,),
        "state": (hidden, hidden),
        "token": (hidden, hidden),
        "final_norm": (hidden,),
    }
    for index, width in enumerate(inner):
        out[f"{index}.norm"] = (hidden,)
        out[f"{index}.gate_up"] = (2 * width, hidden)
        out[f"{index}.down"] = (hidden, width)
    return out


class Speculator:
    """The network over a target's ``embedding``, with a ``head`` that takes states to logits of some ids."""

    def __init__(
        self, weights: SpeculatorWeights, embedding: EmbeddingTable, head: Linear, precision: Precision, device: torch.device
    ) -> None:
        norms = {name: tensor.to(device, precision.stream) for name, tensor in weights.tensors.items() if tensor.dim() == 1}
        linears = {name: _linear(tensor, precision, device) for name, tensor in weights.tensors.items() if tensor.dim() == 2}
        self._embedding, self._head = embedding, head
        self._state, self._state_norm = linears["state"], norms["state_norm"]
        self._token, self._token_norm = linears["token"], norms["token_norm"]
        self._final_norm = norms["final_norm"]
        self._layers: list[tuple[Tensor, Mlp]] = [
            (norms[f"{index}.norm"], make_mlp(linears[f"{index}.gate_up"], linears[f"{index}.down"], "silu"))
            for index in range(weights.layers)
        ]

        self._level = self._one_call()

    def _one_call(self) -> SpeculatorLevel | None:
        """A kernel for a whole level; None where some part is not one of its."""
        library = load_library()
        head, more = self._head.lasting if isinstance(self._head, TrimmedHead) else (None, None)
        layers = [(norm, mlp) for norm, mlp in self._layers if isinstance(mlp, PackedMlp)]
        squares = [linear for linear in (self._state, self._token) if isinstance(linear, PACKED)]
        if library is None or not isinstance(head, PACKED) or not isinstance(more, GrowingLinear):
            return None
        if len(layers) < len(self._layers) or len(squares) < 2:
            return None
        state, token = zip((self._state_norm, self._token_norm), squares, strict=True)
        return SpeculatorLevel(library, state, token, layers, self._final_norm, (head, more), EPS)

    def blank(self, rows: int) -> Tensor:
        """States that mean nothing, [rows, hidden], to time a level with."""
        return self._state_norm.new_ones(rows, len(self._state_norm))

    @torch.inference_mode()
    def __call__(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """One level: from ``states`` [rows, hidden] in the stream dtype and the ``tokens`` int64 [rows] that were chosen there, the
        states at these tokens and their logits [rows, outputs of the head]."""
        embedded = self._embedding[tokens.to(states.device)].to(states.dtype)
        if self._level is not None:
            return self._level(states, embedded)
        hidden = self._state.after_norm(states, self._state_norm, EPS)
        hidden += self._token.after_norm(embedded, self._token_norm, EPS)
        for norm, mlp in self._layers:
            hidden = mlp(hidden, norm, EPS, residual=hidden)
        return hidden, self._head.after_norm(hidden, self._final_norm, EPS)


def _linear(weight: Tensor, precision: Precision, device: torch.device) -> Linear:
    """Beside integer weights in four bits, and in eight where no kernel multiplies these."""
    if not precision.quantised:
        return DenseLinear(weight.to(device, precision.weights), None)
    if few_bits_run():
        packed, scale = pack(iter([weight.float()]), weight.shape[0], 4)
        return packed_linear(packed, scale, None, weight.shape[1], 4)
    codes, scale = quantise_weights(iter([weight.float()]), *weight.shape)
    return int8_linear(codes, scale, None)


def save(weights: SpeculatorWeights, path: Path, target: str) -> None:
    """Write a speculator of the model with the fingerprint ``target``, whole or not at all. Raises OSError."""
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.tensors.items()}
    tensors["ids"] = torch.from_numpy(weights.ids)
    with Replacement(path) as replacement:
        metadata = {"format": FORMAT, "target": target, "learnt": str(weights.learnt)}
        replacement.file.write(safetensors.torch.save(tensors, metadata))


def load(path: Path, target: str, hidden: int, vocabulary: int) -> SpeculatorWeights | None:
    """The speculator kept in ``path``; None where there is none. A file that is damaged, or belongs to another model, is set aside
    under another name, with one warning."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if (metadata.get("format"), metadata.get("target")) != (FORMAT, target):
                raise ValueError("it belongs to another model")
            learnt = metadata.get("learnt", "0")
            if not learnt.isdecimal():
                raise ValueError("it does not say what it learnt from")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return replace(_checked(tensors, hidden, vocabulary), learnt=int(learnt))
    except FileNotFoundError:
        return None
    except OSError as problem:
        log.warning("The speculator in %s cannot be read (%s); it is left out.", path, problem.strerror)
    except (ValueError, SafetensorError, MemoryError) as problem:
        set_aside(path, f"The speculator in {path} is damaged ({problem})")
    return None


def _checked(tensors: dict[str, Tensor], hidden: int, vocabulary: int) -> SpeculatorWeights:
    """Raises ValueError for whatever ``save`` would not have written for this model."""
    ids = tensors.pop("ids", torch.empty(0))
    if ids.dtype is not torch.int64 or ids.dim() != 1 or not len(ids) or int(ids[0]) < 0 or int(ids[-1]) >= vocabulary:
        raise ValueError("its ids are none of the model's")
    if bool((ids[1:] <= ids[:-1]).any()):
        raise ValueError("its ids do not ascend")
    inner: list[int] = []
    while (down := tensors.get(f"{len(inner)}.down")) is not None and len(inner) < MOST_LAYERS:
        inner.append(down.numel() // hidden)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes(hidden, inner) or not inner:
        raise ValueError("its shapes are not those of the model")
    if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("it holds numbers that are none")
    return SpeculatorWeights({name: tensor.float() for name, tensor in tensors.items()}, ids.numpy())
