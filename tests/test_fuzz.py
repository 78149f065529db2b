"""The fuzz targets over their seeds and random mutations of them, without atheris; and inputs that once found a fault."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))

import targets
from mutate import mutated_json

FOUND: dict[str, list[bytes]] = {
    "body": [
        b'\x03{"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": [{"type": "tool_result", "content": 1}]}]}',
        b'\x01{"prompt": [], "prov\\nance": []}',
    ],
    "weights": [],
    "template": [b"{% break %}"],
}


def mutated(seed: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, dropped, doubled or moved."""
    out = bytearray(seed)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(out) + 1)
        end = min(len(out), at + dice.choice([1, 1, 2, 4, 8, 30]))
        match dice.randrange(5):
            case 0:
                out[at:end] = dice.randbytes(end - at)
            case 1:
                del out[at:end]
            case 2:
                out[at:at] = out[at:end]
            case 3:
                part = out[at:end]
                del out[at:end]
                to = dice.randrange(len(out) + 1)
                out[to:to] = part
            case _:
                out[at:at] = dice.choice([b"{", b"[", b"}}", b"{%", b"-1", b"1e999", b"null", b"\x00", b"\xff", b"true", b'"'])
    return bytes(out)


@pytest.mark.parametrize(("name", "cases"), [("body", 1500), ("weights", 300), ("template", 300)])
def test_seeds_and_mutations(name: str, cases: int) -> None:
    dice = random.Random(7)
    seeds = targets.SEEDS[name]()
    for case in [*seeds, *FOUND[name], *(mutated(dice.choice(seeds), dice) for _ in range(cases))]:
        targets.TARGETS[name](case)


def test_bodies_that_stay_json() -> None:
    dice = random.Random(11)
    case, kept = targets.SEEDS["body"]()[0], 0
    for number in range(3000):
        if number % 20 == 0:
            case = dice.choice(targets.SEEDS["body"]())
        before, case = case, mutated_json(case, dice)
        kept += case == before
        json.loads(case[1:])
        targets.body(case)
    assert kept < 300


def test_a_target_sees_what_it_watches_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults put in on purpose: an error that is no refusal, one that is no model error, a template that opens a file."""
    monkeypatch.setattr(targets, "parse_json", lambda content, limits: {}["gone"])
    with pytest.raises(KeyError):
        targets.body(b"\x00{}")
    monkeypatch.setattr(targets, "open_source", lambda path: {}["gone"])
    with pytest.raises(KeyError):
        targets.weights(b"GGUF")
    monkeypatch.setattr(targets.chat_worker, "answer", lambda cache, source, names: {"text": Path(__file__).read_text()})
    with pytest.raises(AssertionError, match="open"):
        targets.template(b"x")
