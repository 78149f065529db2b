"""Errors as clients expect them: OpenAI's object, or Anthropic's on its own path, with the right status."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from hasten.core.errors import ConfigError, HastenError, InvalidRequest, OutOfBlocks

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
INTERNAL = "Something broke inside the server; the request was not served. The operator finds the cause in the log."


class ApiError(Exception):
    """What a request is refused with. ``message`` is one sentence, in which line breaks and marks that turn the way of reading
    are escaped: parts of it are a client's words. ``param`` names the field that is to blame. ``details`` are for Anthropic's
    clients, which decide by them what to do next."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.message = _printable(message)
        super().__init__(self.message)
        self.status = status
        self.param = param
        self.code = code
        self.details = details
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after)))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400."""
    return ApiError(400, message, param=param, code=code)


def unsupported(name: str, why: str = "is not supported by this server; leave it out") -> ApiError:
    """A 400 that names what this server cannot do."""
    return ApiError(400, f"'{name}' {why}.", param=name, code="unsupported_parameter")


def stopping() -> ApiError:
    """What a request ends with that outlives the server's time to stop."""
    return ApiError(503, "The server is stopping.", code="stopping", retry_after=5)


def engine_dead(model: str) -> ApiError:
    """What a request ends with whose engine's thread has ended by itself."""
    return ApiError(503, f"The engine of '{model}' has ended.", code="engine_dead")


def api_error(problem: BaseException) -> ApiError:
    """Whatever was raised, as an answer. Of errors that are not meant for users nothing is told."""
    if isinstance(problem, ApiError):
        return problem
    if isinstance(problem, OutOfBlocks):
        return ApiError(503, str(problem), code="out_of_memory", retry_after=1)
    if isinstance(problem, InvalidRequest):
        code = "context_length_exceeded" if type(problem).__name__ == "PromptTooLong" else None
        return ApiError(400, str(problem), code=code)
    if isinstance(problem, HastenError) and not isinstance(problem, ConfigError):
        return ApiError(500, str(problem))
    return ApiError(500, INTERNAL)


def openai_body(error: ApiError) -> dict[str, Any]:
    kind = OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    kind = ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    details = {} if error.details is None else {"details": dict(error.details)}
    return {"type": "error", "error": {"type": kind, "message": error.message, **details}}


def is_anthropics(path: str) -> bool:
    """Whether a path belongs to Anthropic's interface."""
    return path.startswith("/v1/messages")


def error_response(error: ApiError, path: str) -> JSONResponse:
    """The response in the shape of the interface that ``path`` belongs to."""
    body = anthropic_body(error) if is_anthropics(path) else openai_body(error)
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def status_phrase(status: int) -> str:
    return HTTPStatus(status).phrase.lower()
