"""What a weight source is, and the check that a model's tensors are the ones its description promises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from hasten.core.errors import CorruptModel
from hasten.model.description import ModelDescription

__all__ = ["WeightSource", "check_shapes", "expected_shapes"]


class WeightSource(Protocol):
    """The weights of one model, in canonical names and layout, read from disk piece by piece.

    Names: ``embedding``, ``head`` (absent when tied), ``final_norm`` and, under ``layers.{i}.``: ``attention_norm``, ``q``,
    ``k``, ``v``, ``o``, ``q_norm``, ``k_norm``, ``post_attention_norm``, ``mlp_norm``, ``gate``, ``up``, ``down``,
    ``post_mlp_norm`` and the biases ``q_bias``, ``k_bias``, ``v_bias``, ``o_bias``, ``gate_bias``, ``up_bias``,
    ``down_bias``. All are checked for presence and shape when the source is opened.
    """

    @property
    def description(self) -> ModelDescription: ...

    @property
    def path(self) -> Path: ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of sizes, modification times and headers: a key for what was derived from these weights."""
        ...

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` as float32 [rows, inputs], or the elements of a vector. Raises CorruptModel."""
        ...

    def stored_dtype(self, name: str) -> str:
        """How the tensor lies on disk, such as ``bf16`` or ``q4_k``."""
        ...


def expected_shapes(description: ModelDescription) -> dict[str, tuple[int, ...]]:
    """Canonical name to shape of every tensor that a model of this description has."""
    hidden, inner = description.hidden_size, description.intermediate_size
    query, key = description.query_size, description.kv_size
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (hidden,),
        "q": (query, hidden),
        "k": (key, hidden),
        "v": (key, hidden),
        "o": (hidden, query),
        "mlp_norm": (hidden,),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    if description.qkv_bias:
        layer |= {"q_bias": (query,), "k_bias": (key,), "v_bias": (key,)}
    if description.output_bias:
        layer["o_bias"] = (hidden,)
    if description.mlp_bias:
        layer |= {"gate_bias": (inner,), "up_bias": (inner,), "down_bias": (hidden,)}
    if description.qk_norm:
        layer |= {"q_norm": (description.head_dim,), "k_norm": (description.head_dim,)}
    if description.post_norms:
        layer |= {"post_attention_norm": (hidden,), "post_mlp_norm": (hidden,)}
    shapes = {"embedding": (description.vocabulary_size, hidden), "final_norm": (hidden,)}
    if not description.tied_head:
        shapes["head"] = (description.vocabulary_size, hidden)
    return shapes | {f"layers.{index}.{name}": shape for index in range(description.layers) for name, shape in layer.items()}


def check_shapes(
    path: Path, description: ModelDescription, found: Mapping[str, tuple[int, ...]], stored_names: Mapping[str, str]
) -> None:
    """Refuse a model that lacks a tensor, has one of another shape, or has one that the description leaves no place for.

    ``found``: shapes by canonical name; ``stored_names``: the file's own names, for the message.
    """
    expected = expected_shapes(description)
    for name, shape in expected.items():
        if name not in found:
            raise CorruptModel(f"{path} lacks the tensor for {name!r:.100}; download or convert it again.")
        if found[name] != shape:
            raise CorruptModel(
                f"{path}: the tensor {stored_names[name]!r:.100} has the shape {list(found[name])} where its description "
                f"asks for {list(shape)}; download or convert it again."
            )
    for name in found:
        if name not in expected:
            raise CorruptModel(
                f"{path} holds the tensor {stored_names[name]!r:.100}, which has no place in its description; convert it."
            )
