"""Typed, bounded reading of a model's own description, whether GGUF metadata or JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

from hasten.core.errors import CorruptModel, UnsupportedModel

__all__ = ["MAXIMUM_LAYERS", "MAXIMUM_LENGTH", "Fields"]

MAXIMUM_LAYERS = 1 << 12
MAXIMUM_LENGTH = 1 << 31  # of any dimension, and of a context
_absent: Any = object()


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping from outside and the file it is from. ``prefix`` goes before every key.

    Each reader raises CorruptModel when the value has another type or lies out of bounds, or when it is missing (absent or
    None) and no default is given.
    """

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""

    def corrupt(self, what: str) -> Never:
        raise CorruptModel(f"{self.path}: {what}; download or convert the model again.")

    def unsupported(self, what: str) -> Never:
        raise UnsupportedModel(f"{self.path}: {what}; choose another model.")

    def get(self, key: str) -> Any:
        """The value as it stands, None where there is none."""
        return self.values.get(self.prefix + key)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def _found(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is not None:
            return value
        if default is _absent:
            self.corrupt(f"{self.prefix + key!r} is missing from the model's description")
        return default

    def _wrong(self, key: str, value: Any, allowed: str) -> Never:
        if isinstance(value, list) and value:
            self.unsupported(f"{self.prefix + key!r} is a list where Hasten reads one value for all layers, {allowed}")
        self.corrupt(f"{self.prefix + key!r} is {value!r:.60} where {allowed} is allowed")

    def integer(self, key: str, low: int, high: int, default: int = _absent) -> int:
        value = self._found(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            self._wrong(key, value, f"an integer from {low} to {high}")
        return value

    def length(self, key: str, default: int = _absent) -> int:
        return self.integer(key, 1, MAXIMUM_LENGTH, default)

    def positive(self, key: str, default: float = _absent) -> float:
        value = self._found(key, default)
        if type(value) not in (int, float) or not 0.0 < value < 1e30 or not math.isfinite(value):
            self._wrong(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool = _absent) -> bool:
        value = self._found(key, default)
        if type(value) is not bool:
            self._wrong(key, value, "true or false")
        return bool(value)

    def text(self, key: str, default: str = _absent) -> str:
        value = self._found(key, default)
        if type(value) is not str:
            self._wrong(key, value, "a string")
        return str(value)

    def nested(self, key: str) -> Fields:
        """The mapping under ``key``; an empty one where there is none."""
        value = self._found(key, {})
        if type(value) is not dict:
            self._wrong(key, value, "an object")
        return Fields(self.path, value)
