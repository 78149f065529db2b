"""``hasten prove``: a sound engine is shown to be sound, and planted faults are found, named and given with both logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hasten.cli.prove as verb
from hasten.bench.prove import Proof, Shown, fresh_logits
from hasten.cli.main import run as command_line
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, InvalidRequest
from hasten.core.types import Batch, DraftTree
from hasten.draft.base import Drafter
from hasten.draft.recycling import RecyclingDrafter
from hasten.draft.suffix import SuffixDrafter
from hasten.engine.engine import Engine
from hasten.sampling import rules
from hasten.sampling.verify import verify_tree
from tiny import LETTERS, tiny_engine

PROMPTS = [[at % 53 for at in range(start, start + length)] for start, length in ((0, 70), (7, 20), (3, 130), (11, 5))]
FEW = [prompt[:20] for prompt in PROMPTS[:3]]  # enough for a batch and for chunks, not for the cache


def sound() -> Engine:
    return tiny_engine(drafters=[SuffixDrafter(), RecyclingDrafter()])


def shown_by(engine: Engine, prompts: list[list[int]], tokens: int) -> list[Shown]:
    return list(Proof(engine, prompts, tokens).run())


def test_a_sound_engine_is_shown_to_be_sound() -> None:
    found = shown_by(sound(), PROMPTS, 8)
    assert all(shown.difference is None for shown in found)
    assert {shown.promise for shown in found if shown.result == "shown"} == {
        "drafts change nothing",
        "a seed repeats its text",
        "a batch changes nothing",
        "chunks change nothing",
        "cache hits change nothing",
    }
    # Of prompts of 70, 20, 130 and 5 tokens: three come in chunks of 16, two in chunks of 61, and two fill a block of the cache.
    of_prompts = {"chunks of at most 16": 3, "chunks of at most 61": 2, "the prefix cache": 2, "at once": 4, "every round": 4}
    for way, prompts in of_prompts.items():
        assert [shown.tokens for shown in found if shown.way.endswith(way)] == [8 * prompts] * 2
    # 64 + 64 + 0 + 0 cached tokens, the last token of a prompt being always computed
    assert [shown.evidence for shown in found if shown.unit == "tokens cached"] == [64 + 128, 64 + 128]


def test_a_drafter_that_never_guesses_shows_nothing() -> None:
    class Silent(Drafter):
        name = "silent"

    found = shown_by(tiny_engine(drafters=[Silent()]), FEW[:1], 4)
    assert all(shown.result == "not shown" for shown in found if shown.unit == "guesses verified")
    assert verb.summary("drafts change nothing", found[:1]).startswith("drafts change nothing: not shown")


def test_a_verifier_that_believes_a_drafter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: with two or more nodes in the tree, the first is accepted unseen."""

    def gullible(tree: DraftTree, logits: torch.Tensor, *rest: Any, **named: Any) -> Any:
        verdict = verify_tree(tree, logits, *rest, **named)
        if len(tree) >= 2 and not verdict.path:
            verdict.path, verdict.tokens = [0], [tree.tokens[0], verdict.tokens[0]]
        return verdict

    monkeypatch.setattr(rules, "verify_tree", gullible)
    broken = next(shown for shown in Proof(sound(), PROMPTS[:2], 24).run() if shown.difference is not None)
    assert broken.promise == "drafts change nothing"
    found = broken.difference
    assert found is not None
    assert found.expected is not None
    assert found.found is not None
    # Greedy: the model's own choice has the larger of both logits, which shows whose fault it is.
    assert broken.way.startswith("greedy")
    assert found.logits[0] is not None
    assert found.logits[1] is not None
    assert found.logits[0] > found.logits[1]


def test_what_was_not_done_is_not_what_broke_a_text() -> None:
    """The fault: logits of a pass with guesses belong to other tokens. With one short prompt nothing but guesses is different."""
    engine = sound()
    forward = engine.executor.forward
    engine.executor.forward = lambda batch: (  # type: ignore[method-assign]
        forward(batch).roll(1, -1) if any(len(segment.tree) for segment in batch.segments) else forward(batch)
    )
    found = shown_by(engine, [PROMPTS[3]], 24)
    assert {shown.promise for shown in found if shown.result == "broken"} == {"drafts change nothing"}
    assert all(shown.evidence and shown.unit == "guesses verified" for shown in found if shown.result == "broken")
    assert any("prefix cache" in shown.way or "chunks" in shown.way for shown in found if shown.result == "broken")
    nothing = [shown for shown in found if shown.unit in ("prompts beside", "chunks", "tokens cached")]
    assert len(nothing) == 8
    assert all((shown.result, shown.evidence, shown.tokens) == ("not shown", 0, 0) for shown in nothing)
    assert any("1 prompt at once" in shown.way for shown in nothing)


def test_a_text_that_differs_where_nothing_was_done_differently_is_told_as_such() -> None:
    """The fault: from some pass on, all logits belong to other tokens."""
    engine = tiny_engine(drafters=[SuffixDrafter()])
    proof = Proof(engine, [PROMPTS[3]], 8)
    forward, passes = engine.executor.forward, []

    def drifts(batch: Batch) -> torch.Tensor:
        passes.append(1)
        return forward(batch).roll(1, -1) if len(passes) > 8 * len(proof.cases) else forward(batch)

    engine.executor.forward = drifts  # type: ignore[method-assign]
    engine.drafting.drafters[0].propose = lambda sequences, budgets: [DraftTree() for _ in sequences]  # type: ignore[method-assign]
    broken = [shown for shown in proof.run() if shown.result == "broken"]
    assert broken
    assert {shown.promise for shown in broken} == {"a seed repeats its text"}


def leak(engine: Engine) -> None:
    """The fault: logits of a pass over three sequences or more belong to other tokens."""
    forward = engine.executor.forward

    def leaky(batch: Batch) -> torch.Tensor:
        logits = forward(batch)
        return logits.roll(1, dims=-1) if len(batch.segments) > 2 else logits

    engine.executor.forward = leaky  # type: ignore[method-assign]


def test_logits_that_depend_on_the_batch_are_found() -> None:
    engine = sound()
    leak(engine)
    broken = {shown.promise for shown in shown_by(engine, FEW, 6) if shown.difference is not None}
    assert broken == {"a batch changes nothing"}


def test_keys_of_another_prompt_in_the_cache_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: found blocks hold what something else left there."""
    engine = sound()
    proof = Proof(engine, PROMPTS[:1], 6)
    variant = proof.subject.variant

    def spoiled(*arguments: Any, **named: Any) -> Engine:
        made = variant(*arguments, **named)
        match = made.scheduler.blocks.match_prefix

        def wrong(*what: Any) -> list[int]:
            blocks = match(*what)
            if blocks:
                engine.executor.pool.values[:, blocks[0]] += 1.0
            return blocks

        monkeypatch.setattr(made.scheduler.blocks, "match_prefix", wrong)
        return made

    proof.subject.variant = spoiled  # type: ignore[method-assign]
    broken = {shown.promise for shown in proof.run() if shown.difference is not None}
    assert broken == {"cache hits change nothing"}


def test_fresh_logits_are_those_of_one_pass() -> None:
    engine = sound()
    logits = fresh_logits(engine, PROMPTS[2])
    assert len(PROMPTS[2]) > engine.max_rows, "must take several passes"
    first = engine.submit(PROMPTS[2], Proof(engine, PROMPTS, 1).cases[0].params)
    while not first.finished:
        engine.step()
    assert logits.index(max(logits)) == first.answers[0].sequence.output[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "two", "max_tokens": 2, "seed": 7}', "line 2 sets max_tokens, seed, and all answers are sampled alike here"),
        ('{"prompt": "' + "two " * 60 + '", "id": "q2"}', "line 2 (id q2): Prompt is too long"),
    ],
)
def test_a_prompt_that_cannot_be_taken_is_named(
    line: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "load", TinyLLM)
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "one"}\n' + line, encoding="utf-8")
    assert command_line(["prove", "-m", "tiny", "--prompts", str(file)]) == 1
    assert f"{file}, {sentence}" in capsys.readouterr().err


def test_rules_that_keep_no_tokens_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["prove", "-m", "tiny", "--verify", "block"]) == 2
    assert "--verify coupled" in capsys.readouterr().err


def test_a_rule_for_other_calls_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[EngineConfig] = []

    def load(config: EngineConfig) -> Any:
        loaded.append(config)
        raise ConfigError("That is enough.")

    monkeypatch.setattr(verb, "load", load)
    monkeypatch.setenv("HASTEN_VERIFY", "block")
    assert command_line(["prove", "-m", "tiny"]) == 1
    assert loaded[0].verify == "coupled"


def test_plain_engines_are_refused() -> None:
    with pytest.raises(ConfigError, match="Without drafters"):
        Proof(tiny_engine(), PROMPTS)


class TinyLLM:
    """An LLM over a tiny engine, as the verb uses one."""

    has_chat_template = False
    name, precision = "tiny", "fp64"
    fault = False

    def __init__(self, config: Any) -> None:
        self.engine = sound()
        if self.fault:
            leak(self.engine)

    def check(self, prompt: str, params: Any) -> None:
        if prompt.count("two") > 50:
            raise InvalidRequest("Prompt is too long.")

    def encode(self, prompt: str) -> list[int]:
        return [LETTERS.index(letter) for letter in prompt if letter in LETTERS][:20]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("fault", [False, True])
def test_the_verb_ends_with_what_was_shown_and_its_status(
    fault: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = type("Faulty", (TinyLLM,), {"fault": fault})
    monkeypatch.setattr(verb, "load", llm)
    status = command_line(["prove", "-m", "tiny", "--max-tokens", "4"])
    out = capsys.readouterr().out
    assert status == (1 if fault else 0)
    assert "chunks change nothing: shown by" in out
    assert ("a batch changes nothing: BROKEN" in out) is fault
    assert ("(logit " in out) is fault
    assert ("fp64 is exact up to rounding here" in out) is fault
