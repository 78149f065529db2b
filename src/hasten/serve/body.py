"""A request's body: read within bounds of size and time, parsed as plain JSON, and checked against a wire type."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from hasten.serve.errors import ApiError, invalid
from hasten.serve.limits import Limits

Wire = TypeVar("Wire", bound=BaseModel)
Result = TypeVar("Result")
LARGE_BODY = 64 << 10  # bytes; parsing more would hold up the event loop
body_size: ContextVar[int] = ContextVar("body_size", default=0)  # bytes, of the request that this task serves


async def read_body(request: Request, limits: Limits) -> bytes:
    """The raw body. Raises ApiError: 413 when too long, 408 when too slow, 415 when it is not plain JSON."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send the body as JSON, with the header Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Send the body as it is; compressed bodies are not taken.")
    declared = request.headers.get("content-length", "")
    too_long = ApiError(413, f"The body is longer than {limits.max_body_bytes} bytes, which is the most allowed; send less.")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise too_long
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_timeout):
            async for part in request.stream():
                size += len(part)
                if size > limits.max_body_bytes:
                    raise too_long
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {limits.body_timeout:g} seconds.") from None
    except ClientDisconnect:
        raise ApiError(400, "The client went away before its body was complete.") from None
    body_size.set(size)
    return b"".join(parts)


async def parsed(body: bytes, limits: Limits, use: Callable[[dict[str, Any]], Result]) -> Result:
    """What ``use`` makes of the body's object; of a large one in a thread. Raises what ``parse_json`` and ``use`` raise."""

    def work() -> Result:
        return use(parse_json(body, limits))

    return await asyncio.to_thread(work) if len(body) > LARGE_BODY else work()


def parse_json(body: bytes, limits: Limits) -> dict[str, Any]:
    """The body's object. Raises ApiError (400): empty, no JSON, no object, nested too deep, no valid Unicode, NaN or Infinity."""
    if not body:
        raise invalid("The body is empty; send a JSON object.", code="invalid_json")
    try:
        value = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object)
    except RecursionError:
        raise _too_deep(limits) from None
    except ValueError as problem:  # also UnicodeDecodeError, and whole numbers of thousands of digits
        said = "a number has thousands of digits" if "max_str_digits" in str(problem) else str(problem)[:120]
        raise invalid(f"The body is not valid JSON ({said}).", code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.", code="invalid_json")
    _check_shape(value, limits)
    return value


def plain_json(text: str) -> Any:
    """What a model wrote as JSON. Raises ValueError for what no answer could carry, too: NaN, Infinity and halves of surrogate
    pairs, which Python reads, and what is nested deeper than it can follow."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def validated(kind: type[Wire], value: dict[str, Any]) -> Wire:
    """The object as a wire type. Raises ApiError (400) that names the first field that is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as problem:
        raise field_error(problem, value) from None


def field_error(problem: ValidationError, value: Any) -> ApiError:
    """The first mistake in ``value``, in one sentence. A field that does not exist is named as such."""
    found = problem.errors(include_url=False, include_context=False, include_input=False)
    # Where a field may be several things, each of them complains. The client meant the one that got deepest into what was sent, or
    # that had another complaint than its type.
    paths = [_path(each["loc"], value, each["type"] == "missing") for each in found]
    same = [at for at, path in enumerate(paths) if path[:1] == paths[0][:1]]
    at = max(same, key=lambda at: (len(paths[at]), not found[at]["type"].endswith("_type")))
    return _sentence(found[at]["type"], ".".join(paths[at])[:200], found[at]["msg"])


def _path(loc: tuple[int | str, ...], value: Any, missing: bool) -> list[str]:
    """The steps of a place that are in what the client wrote, without the names of a union's branches."""
    path: list[str] = []
    for part in loc[:-1] if missing else loc:
        inside = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if inside:
            value = value[part]
            path.append(str(part))
    if not missing:
        return path
    if isinstance(value, dict) and loc[-1] in value:  # not missing there: a field is called what a union's branch is
        path.pop()
    return [*path, str(loc[-1])]


def _sentence(kind: str, name: str, said: str) -> ApiError:
    if kind == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {name}.", param=name, code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if kind == "range":
        return invalid(f"{name} {said}.", param=name)
    return invalid(f"Invalid value for '{name}': {said.removeprefix('Value error, ').rstrip('.')}.", param=name)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    """A number that JSON can write, too: Python reads 1e999 as infinity."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is too large for a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _too_deep(limits: Limits) -> ApiError:
    return invalid(
        f"The body is nested deeper than {limits.max_json_depth} levels, which is the most allowed.", code="invalid_json"
    )


def _check_shape(value: Any, limits: Limits) -> None:
    """Depth, and halves of surrogate pairs, which are no text. Without recursion: the depth is the client's choice."""
    level: list[Any] = [value]
    for _ in range(limits.max_json_depth):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, str) and not item.isascii() and not _is_text(item):
                raise invalid("The body has half of a surrogate pair in a string; send valid Unicode.", code="invalid_json")
        if not deeper:
            return
        level = deeper
    raise _too_deep(limits)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
