"""Names inside messages: those that mean something are read or refused, those that clients only send along are let pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.serve.errors import ApiError

# What clients copy from an answer into the next request, and hints for a cache that is always on here.
WITHOUT_EFFECT = frozenset(
    {
        "annotations",
        "cache_control",
        "caller",
        "citations",
        "id",
        "index",
        "logprobs",
        "parsed",
        "parsed_arguments",
        "parsed_output",
        "phase",
        "prompt_cache_breakpoint",
        "provider_specific_fields",
        "status",
        "toolset_name",
    }
)


def refuse_unknown(item: Mapping[str, Any], known: frozenset[str], where: str, param: str) -> None:
    """Raise ApiError (400) that names the first field of ``item`` (which is at ``where``) that is not known, unless it is null."""
    for name, value in item.items():
        if name not in known and name not in WITHOUT_EFFECT and value is not None:
            raise ApiError(
                400, f"{where} has an unknown field {name[:40]!r}.", param=f"{param}.{name[:40]}", code="unknown_parameter"
            )
