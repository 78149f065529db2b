"""What callers of ``LLM`` give, checked where it comes in: what lies behind takes its types for granted.

Everything here raises InvalidRequest, one sentence that says what is taken."""

from __future__ import annotations

import json
import operator
import reprlib
from collections.abc import Iterable, Mapping, Set
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hasten.core.config import SpeculationParams
from hasten.core.errors import InvalidRequest
from hasten.core.types import SamplingParams
from hasten.engine.grammar import Form
from hasten.model.thinking import Thinking

TokenIds: TypeAlias = list[int] | tuple[int, ...] | NDArray[np.integer[Any]] | Tensor
Prompt: TypeAlias = str | TokenIds


def prompts_of(given: object) -> list[str | list[int]]:
    """One prompt, or several of them, as a list of prompts."""
    if isinstance(given, str):
        return [given]
    listed = _listed(given)
    if listed is None:
        return [prompt_of(given)]
    ids = _ids(listed) if listed else None
    return [prompt_of(one) for one in listed] if ids is None else [ids]


def prompt_of(given: object, name: str = "A prompt") -> str | list[int]:
    """One prompt, or what else is told as one and errors call ``name``."""
    return given if isinstance(given, str) else ids_of(given, name, "a text, or token ids")


def ids_of(given: object, name: str, what: str = "token ids") -> list[int]:
    """Token ids, as Python's own numbers."""
    listed = _listed(given)
    ids = None if listed is None else _ids(listed)
    if ids is None:
        raise InvalidRequest(
            f"{name} must be {what} (a list, or an array of one dimension, of whole numbers), not {_short(given)}."
        )
    return ids


def params_of(given: object, count: int) -> list[SamplingParams]:
    """Those of ``count`` prompts, of one for all or one each."""
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    each = _listed(given)
    if each is None or not all(isinstance(one, SamplingParams) for one in each):
        raise InvalidRequest(f"params must be SamplingParams(...), or a list with one for each prompt, not {_short(given)}.")
    if len(each) != count:
        raise InvalidRequest(f"There are {count} prompts but {len(each)} sampling parameters; give one for all, or one each.")
    return each


def one_params(given: object) -> SamplingParams:
    """Those of the only prompt."""
    if given is None or isinstance(given, SamplingParams):
        return given or SamplingParams()
    raise InvalidRequest(f"params must be SamplingParams(...), not {_short(given)}.")


def check_wishes(tenant: object, speculation: object, thinking: object) -> None:
    if not isinstance(tenant, str):
        raise InvalidRequest(f"tenant must be a text, not {_short(tenant)}.")
    if not isinstance(speculation, SpeculationParams):
        raise InvalidRequest(f"speculation must be SpeculationParams, such as SpeculationParams('off'), not {_short(speculation)}.")
    if thinking is not None and not isinstance(thinking, Thinking):
        raise InvalidRequest(f"thinking must be the model's own (the property thinking of LLM) or None, not {_short(thinking)}.")


def form_of(given: object) -> Form:
    """A form, or the JSON schema that a mapping is."""
    if isinstance(given, Form):
        return given
    if not isinstance(given, Mapping):
        raise InvalidRequest(
            f"form must be a JSON schema as a dict, or a Form such as Form('regex', '[0-9]+'), not {_short(given)}."
        )
    try:
        return Form("json", json.dumps(dict(given)))
    except (TypeError, ValueError, RecursionError) as problem:
        raise InvalidRequest(
            f"The JSON schema cannot be written as JSON ({problem}); give dicts, lists, texts and numbers."
        ) from None


def _listed(given: object) -> list[Any] | None:
    """The entries of whatever has them in an order; None where it is something else, such as one text."""
    if isinstance(given, np.ndarray | Tensor):
        return list(given.tolist()) if given.ndim == 1 else None
    if isinstance(given, str | bytes | bytearray | memoryview | Mapping | Set) or not isinstance(given, Iterable):
        return None
    return list(given)


def _ids(listed: list[Any]) -> list[int] | None:
    """None where one of them is no token id. True and False are none, nor is an array, even of one."""
    if all(type(token) is int for token in listed):
        return listed
    if any(isinstance(token, bool) or getattr(token, "ndim", 0) for token in listed):
        return None
    try:
        return [operator.index(token) for token in listed]
    except TypeError:
        return None


def _short(given: object) -> str:
    return " ".join(reprlib.repr(given).split())[:60]
