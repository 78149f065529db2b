"""The ``hasten`` object of an answer: what drafting brought, and by what the answer can be trusted."""

from __future__ import annotations

from typing import Any

from hasten.core.results import Completion
from hasten.serve.provenance import Legend


def account(completions: list[Completion], explain: bool = False) -> dict[str, Any]:
    """The account of one HTTP request; with ``explain`` also why each drafter was on or off.

    Several prompts are added up; their speed is then that of the slowest."""
    slowest = min(completions, key=lambda completion: completion.speed.tokens_per_second or float("inf"))
    by_drafter: dict[str, dict[str, int]] = {}
    for completion in completions:
        for name, count in sorted(completion.speculation.by_drafter.items()):
            entry = by_drafter.setdefault(name, {"drafted": 0, "accepted": 0})
            entry["drafted"] += count.drafted
            entry["accepted"] += count.accepted
    cuts = [completion.cut_by for completion in completions if completion.cut_by is not None]
    decisions = {name: text for completion in completions for name, text in completion.speculation.decisions.items()}
    return {
        "exact": all(completion.exact for completion in completions),
        "precision": completions[0].precision,
        "speedup": _rounded(slowest.speed.speedup),
        "tokens_per_second": _rounded(slowest.speed.tokens_per_second),
        "plain_tokens_per_second": _rounded(slowest.speed.plain_tokens_per_second),
        "rounds": sum(completion.speculation.rounds for completion in completions),
        "drafted": sum(completion.speculation.drafted for completion in completions),
        "accepted": sum(completion.speculation.accepted for completion in completions),
        "by_drafter": by_drafter,
        "prefill_s": round(max(completion.timing.prefill_s for completion in completions), 4),
        "decode_s": round(max(completion.timing.decode_s for completion in completions), 4),
        **({"cut_by": cuts[0]} if cuts else {}),
        **({"decisions": decisions} if decisions and explain else {}),
    }


def provenance(names: list[str], pieces: list[str], legend: Legend) -> dict[str, Any]:
    """Who guessed each token of a piece of text: one letter a token, and the token's part of the text."""
    codes = legend.codes(names)
    return {"provenance": codes, "pieces": pieces, "legend": legend.names()}


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What events tell beside two pieces of a stream, one after the other, beside one: ``provenance`` as "hasten", or nothing."""
    if not first or not second:
        return first or second
    one, other = first["hasten"], second["hasten"]
    return {"hasten": other | {name: one[name] + other[name] for name in ("provenance", "pieces")}}


def usage(completions: list[Completion]) -> dict[str, Any]:
    """OpenAI's usage object. Of a prediction's tokens those count that were verified."""
    prompt = sum(completion.usage.prompt_tokens for completion in completions)
    output = sum(completion.usage.completion_tokens for completion in completions)
    predicted = [count for completion in completions if (count := completion.speculation.by_drafter.get("prediction"))]
    accepted = sum(count.accepted for count in predicted)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(completion.usage.cached_tokens for completion in completions)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(completion.usage.thought_tokens for completion in completions),
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(count.drafted for count in predicted) - accepted,
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
