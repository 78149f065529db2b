"""Log-probabilities in the two shapes that OpenAI's interface has for them."""

from __future__ import annotations

import math
from typing import Any

from hasten.core.types import TokenLogprob
from hasten.model.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0  # JSON has no minus infinity; OpenAI writes this


def chat_logprobs(entries: list[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """One entry a token: its text, bytes and log-probability, and the likeliest tokens there."""
    content = [
        {**_named(entry.token, entry.logprob, tokenizer), "top_logprobs": [_named(*one, tokenizer) for one in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def text_logprobs(entries: list[TokenLogprob], pieces: list[str], offset: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Parallel lists, one entry a token. ``pieces``: the text that each token brought; ``offset``: how much came before."""
    offsets: list[int] = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece)
    return {
        "tokens": [_spelled(entry.token, tokenizer) for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": [_by_text(entry, tokenizer) for entry in entries],
        "text_offset": offsets,
    }


def _by_text(entry: TokenLogprob, tokenizer: Tokenizer) -> dict[str, float]:
    """The likeliest tokens by their text, likeliest first, and the chosen one. Of two with one text the likelier counts."""
    found: dict[str, float] = {}
    for token, value in (*entry.top, (entry.token, entry.logprob)):
        found.setdefault(_spelled(token, tokenizer), _finite(value))
    return found


def _spelled(token: int, tokenizer: Tokenizer) -> str:
    """A token's text, or its bytes where they are only a part of a character: those would all look alike."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _named(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"token": tokenizer.token_text(token), "logprob": _finite(logprob), "bytes": list(tokenizer.token_bytes(token))}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else IMPOSSIBLE
