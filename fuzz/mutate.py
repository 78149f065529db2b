"""Changes to a request's body that keep it JSON: bytes changed at random seldom get past the parser."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

from targets import KINDS

Place = tuple[Any, Any]  # a list or an object, and an index or a key of it

NAMES = sorted({field.alias or name for kind in KINDS for name, field in kind.model_fields.items()})
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 2**31, 2**63, -(2**63), 10**400, 1e308, float("inf"), float("nan"),
    "", "a", "auto", "none", "required", "text", "json_object", "json_schema", "function", "tool", "user", "system",
    "\x00", "\ud800", "\u202e", "{}", "<tool_call>", "x" * 300, [], [[]], {}, {"": {}}, [None], ["a"], [1, 2], {"type": "text"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
)  # fmt: skip


def mutated_json(data: bytes, dice: random.Random) -> bytes:
    """``data`` (a byte that chooses the route, then JSON) with one to four changes; as it is, where it is no JSON object."""
    try:
        value = json.loads(data[1:])
    except (ValueError, RecursionError):
        return data
    if not isinstance(value, dict):
        return data
    for _ in range(dice.randint(1, 4)):
        _change(value, dice)
    kind = data[:1] if dice.random() < 0.9 else dice.randbytes(1)
    try:
        return kind + json.dumps(value).encode()
    except RecursionError:
        return data


def _change(value: dict[str, Any], dice: random.Random) -> None:
    places = _places(value)
    if not places or dice.random() < 0.2:
        value[dice.choice(NAMES)] = deepcopy(dice.choice(VALUES))
        return
    holder, at = dice.choice(places)
    match dice.randrange(5):
        case 0:
            del holder[at]
        case 1:
            holder[at] = [holder[at]]
        case 2:
            other, there = dice.choice(places)
            holder[at] = deepcopy(other[there])
        case 3 if isinstance(holder, dict):
            holder[dice.choice(NAMES)] = holder.pop(at)
        case _:
            holder[at] = deepcopy(dice.choice(VALUES))


def _places(value: Any) -> list[Place]:
    """Every place below ``value``, to a depth and a number at which changes still are quick."""
    found: list[Place] = []
    level = [value]
    for _ in range(12):
        below: list[Any] = []
        for one in level:
            keys = list(one) if isinstance(one, dict) else range(len(one))
            found += [(one, key) for key in keys]
            below += [one[key] for key in keys if isinstance(one[key], dict | list)]
            if len(found) > 400:
                return found
        level = below
    return found
