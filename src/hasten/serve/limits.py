"""How much one client may ask for. One frozen dataclass; the command line's options are its fields. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from hasten.core.errors import ConfigError
from hasten.core.types import MAX_LOGIT_BIAS, MAX_N, MAX_STOP_STRINGS, MAX_TOP_LOGPROBS

_CEILINGS = {
    "max_n": MAX_N,
    "max_logprobs": MAX_TOP_LOGPROBS,
    "max_stop": MAX_STOP_STRINGS - 1,  # one is ours, where an answer ends with its first call
    "max_logit_bias": MAX_LOGIT_BIAS,
}
_MAY_BE_ZERO = ("max_prompt_tokens", "max_output_tokens", "max_logprobs", "max_stop", "max_logit_bias", "stream_interval")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request and on all of them together. Times are in seconds.

    ``max_prompt_tokens`` and ``max_output_tokens``: 0 leaves them to the model's context. ``max_queue`` counts requests of one
    tenant that wait or run, per model. ``max_batch`` bounds the prompts of a completion, ``max_embedding_inputs`` the texts of a
    request for embeddings, which are read one after the other. ``request_timeout`` bounds a request from its arrival to its last
    token, ``body_timeout`` how long its head, and then its body, may take to arrive. ``keep_alive`` is the pause after which a
    silent stream gets a comment. ``stream_interval`` is the least time between two pieces of a stream: 0 sends what is there; more
    hides from a listener on the wire how many tokens each step brought. ``drain_timeout`` bounds how long running requests may go
    on after the server was told to stop.

    Raises ConfigError when a value is out of range.
    """

    max_body_bytes: int = 4 << 20
    max_json_depth: int = 32
    max_n: int = 8
    max_logprobs: int = 20
    max_stop: int = 16
    max_stop_length: int = 256
    max_logit_bias: int = 1024
    max_prompt_tokens: int = 0
    max_output_tokens: int = 0
    max_batch: int = 64
    max_embedding_inputs: int = 2048
    max_tools: int = 64
    max_queue: int = 256
    max_connections: int = 512
    request_timeout: float = 600.0
    body_timeout: float = 20.0
    keep_alive: float = 10.0
    stream_interval: float = 0.0
    drain_timeout: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = isinstance(field.default, int)
            kind_fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            least = 0 if field.name in _MAY_BE_ZERO else 1 if whole else 1e-3
            most = _CEILINGS.get(field.name, 2**31 - 1)
            if not kind_fits or not math.isfinite(value) or not least <= value <= most:
                kind = "whole number" if whole else "number"
                raise ConfigError(f"{field.name} must be a {kind} from {least} to {most}, not {value!r}.")
