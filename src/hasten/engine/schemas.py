"""JSON schemas of which llguidance cannot hold all: what it has against one, and the part of it that it can hold.

Its own option ``lenient`` leaves out what it does not know (``not``, ``if``, ``uniqueItems`` ...), not what it knows and cannot
follow in this one schema: a pattern that looks ahead, a range beyond its numbers. That is found here, each object by itself.
"""

from __future__ import annotations

import json
from typing import Any

MOST_QUESTIONS = 1000  # to llguidance about one schema, some tenths of a millisecond each
# Keywords without which a schema still says what an answer is made of, in the order in which they are kept.
BOUNDS = (
    "$schema", "format", "pattern", "patternProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip
BESIDE = ("type", "required")  # what the bounds of an object may contradict
BESIDE_A_REFERENCE = {"$ref", "$defs", "definitions", "$id"}
OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")  # keywords that hold a schema under each name
SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
ONE = ("items", "additionalProperties")


def complaint(schema: dict[str, Any], lenient: bool) -> str | None:
    """What llguidance has against a schema, without an end mark; None where it can hold it, as far as it is ``lenient``."""
    from llguidance import LLMatcher

    try:
        said = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"lenient": lenient}))
    except ValueError as problem:
        said = str(problem)
    if not said or said.startswith("WARNING"):
        return None
    return " ".join(said.rsplit("error: ", 1)[-1].split(". ")[0].split())[:200].rstrip(".")


def eased(schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The schema without what beside its types, names and values cannot be held, and the keywords of that. What is no schema stays
    as it is."""
    easing = _Easing("circular references" in (complaint(schema, lenient=True) or ""))
    return easing.of(schema), sorted(easing.left)


class _Easing:
    """``circular``: what stands beside a reference cannot be held where the reference leads back to itself."""

    def __init__(self, circular: bool) -> None:
        self._circular = circular
        self.left: set[str] = set()
        self._questions = 0

    def of(self, schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        # Null is what some languages write for an empty list; it would be none of a keyword's values.
        out = {name: value for name, value in schema.items() if value is not None or name == "const"}
        for name, value in out.items():
            if name in OF_NAMES and isinstance(value, dict):
                out[name] = {key: self.of(inner) for key, inner in value.items()}
            elif name in SEVERAL and isinstance(value, list):
                out[name] = [self.of(inner) for inner in value]
            elif name in ONE:
                out[name] = self.of(value)
        if self._circular and "$ref" in out:
            self.left |= out.keys() - BESIDE_A_REFERENCE
            return {name: value for name, value in out.items() if name in BESIDE_A_REFERENCE}
        for name in self._unheld(out):
            value = out.pop(name)
            if name == "patternProperties" and isinstance(value, dict) and "additionalProperties" in out:
                # Else these would bound what the patterns did.
                out["additionalProperties"] = {"anyOf": [*value.values(), out["additionalProperties"]]}
            self.left.add(name)
        return out

    def _unheld(self, schema: dict[str, Any]) -> list[str]:
        """The bounds of an object that cannot be held together with the others, whatever is inside."""
        bounds = [name for name in BOUNDS if name in schema]
        kept = {name: schema[name] for name in BESIDE if name in schema}
        if isinstance(schema.get("properties"), dict):
            kept["properties"] = dict.fromkeys(schema["properties"], True)
        if "additionalProperties" in schema:
            kept["additionalProperties"] = schema["additionalProperties"] is not False
        given = {name: schema[name] for name in bounds}
        if isinstance(given.get("patternProperties"), dict):
            given["patternProperties"] = dict.fromkeys(given["patternProperties"], True)
        if not bounds or self._holds(kept | given) or not self._holds(kept):
            return []
        left: list[str] = []
        for name in bounds:
            if self._holds(kept | {name: given[name]}):
                kept[name] = given[name]
            else:
                left.append(name)
        return left

    def _holds(self, schema: dict[str, Any]) -> bool:
        self._questions += 1
        return self._questions <= MOST_QUESTIONS and complaint(schema, lenient=True) is None
