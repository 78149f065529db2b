"""Answers of a given form: every token allowed, and the same ones with and without drafts, whatever is drafted."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drafters import Right
from hasten.core.config import EngineConfig
from hasten.core.errors import InvalidRequest
from hasten.core.types import DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.suffix import SuffixDrafter
from hasten.engine.engine import Engine
from hasten.engine.loading import load_engine
from hasten.model.tokenizer import load_tokenizer
from test_tokenizer_folder import byte_level_folder
from tiny import run_all

pytest.importorskip("llguidance")
from hasten.engine.grammar import Form, Grammars, choice

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=600)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTEN_HOME", str(tmp_path_factory.mktemp("home")))
        # Drafted whatever it costs here: what a loaded machine thinks of drafts is not asked.
        return load_engine(EngineConfig(model=str(tiny_model), draft="none", precision="fp32", control="fixed(8)"))


@pytest.fixture(scope="module")
def grammars(engine: Engine) -> Grammars:
    return Grammars(engine.tokenizer, engine.vocabulary)


def answer(
    engine: Engine, grammars: Grammars, form: Form, params: SamplingParams, drafters: list[Drafter] | None = None
) -> list[int]:
    engine.drafting.drafters = drafters or []
    engine.controller.most_nodes = 64
    try:
        request = engine.submit(engine.tokenizer.encode("one two", add_bos=True), params, constraint=grammars.compile(form))
        return run_all(engine, [request])[0]
    finally:
        engine.drafting.drafters = []


def holds(value: Any) -> bool:
    return (
        set(value) == {"name", "age", "tags"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 4
        and isinstance(value["age"], int)
        and 0 <= value["age"] <= 150
        and len(value["tags"]) <= 3
        and set(value["tags"]) <= {"red", "green", "blue"}
    )


class Noise(Drafter):
    """Guesses tokens that a grammar mostly forbids, end tokens among them."""

    name = "noise"

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        trees = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            tree = DraftTree()
            for at in range(min(8, budget.nodes)):
                tree.add(
                    -1 if at % 3 == 0 else len(tree) - 1,
                    (sequence.id * 31 + len(sequence.tokens) * 7 + at * 13) % 604,
                    0.5,
                    self.name,
                )
            trees.append(tree)
        return trees


@pytest.mark.parametrize("seeds", [range(16), pytest.param(range(16, 200), marks=pytest.mark.slow)], ids=["few", "many"])
def test_answers_are_valid_and_equal_with_drafts(engine: Engine, grammars: Grammars, seeds: range) -> None:
    form = Form("json", json.dumps(SCHEMA))
    for seed in seeds:
        params = replace(PARAMS, seed=seed, temperature=0.0 if seed % 4 == 0 else 1.0 + seed % 3)
        plain = answer(engine, grammars, form, params)
        assert holds(json.loads(engine.tokenizer.decode(plain))), engine.tokenizer.decode(plain)
        known = engine.tokenizer.encode("one two", add_bos=True) + plain
        right = Right(lambda sequence, plain=plain: plain)  # type: ignore[misc]
        drafters: list[Drafter] = [[right], [Noise()], [SuffixDrafter(), Noise()]][seed % 3]
        drafted = params if seed % 4 else replace(params, temperature=1.0, top_p=0.0)
        assert answer(engine, grammars, form, drafted, drafters) == plain, known


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (Form("regex", r"[A-Z][a-z]{2,5} [0-9]{3}"), r"[A-Z][a-z]{2,5} [0-9]{3}"),
        (choice(["yes", "no", 'say "maybe"\n']), r'yes|no|say "maybe"\n'),
        (Form("lark", 'start: "a" ("b" | "c")+ "d"'), r"a[bc]+d"),
    ],
)
def test_other_forms(engine: Engine, grammars: Grammars, form: Form, pattern: str) -> None:
    for seed in range(5):
        params = replace(PARAMS, seed=seed, max_tokens=400)
        plain = answer(engine, grammars, form, params)
        assert re.fullmatch(pattern, engine.tokenizer.decode(plain)), engine.tokenizer.decode(plain)
        assert answer(engine, grammars, form, params, [Noise()]) == plain


def test_masks_follow_the_path_and_come_back(engine: Engine, grammars: Grammars) -> None:
    state = grammars.compile(choice(["abc", "abd", "x"]))()
    a, b, c, x = (engine.tokenizer.encode(letter, add_bos=False)[0] for letter in "abcx")
    start = state.allowed_after([])
    assert start is not None
    assert start[a]
    assert start[x]
    assert not start[c]
    deep = state.allowed_after([a, b])
    assert deep is not None
    assert deep[c]
    assert not deep[x]
    again = state.allowed_after([])
    assert again is not None
    assert torch.equal(again, start)
    assert state.allowed_after([c]) is None  # nothing is emitted behind it
    state.accept([a])
    after = state.allowed_after([b])
    assert after is not None
    assert torch.equal(after, deep)


def test_a_state_that_forgets_to_go_back_would_be_noticed(
    engine: Engine, grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: a mask that takes no account of the path."""
    form = Form("json", json.dumps(SCHEMA))
    plain = [answer(engine, grammars, form, replace(PARAMS, seed=seed)) for seed in range(3)]
    from hasten.engine.grammar import GrammarState

    right = GrammarState.allowed_after
    monkeypatch.setattr(GrammarState, "allowed_after", lambda self, path: right(self, []))
    rights = [Right(lambda sequence, tokens=tokens: tokens) for tokens in plain]  # type: ignore[misc]
    drafted = [answer(engine, grammars, form, replace(PARAMS, seed=seed), [right]) for seed, right in enumerate(rights)]
    assert drafted != plain


HOSTILE = [
    Form("json", '{"type": "colour"}'),
    Form("json", '{"$ref": "http://127.0.0.1/schema.json"}'),
    Form("json", '{"unknownKeyword": 1, "type": "object"}'),
    Form("json", "[" * 50),
    Form("regex", "("),
    Form("regex", "(a+)+$" * 10_000),
    Form("regex", "((a{1,1000}){1,1000}){1,1000}"),
    Form("regex", "x" * 300_000),
    Form("lark", "start: nothing"),
    Form("lark", "start: start"),
    Form("lark", 'start: "a" start'),
    Form("lark", "%import common (ESCAPE"),
    Form(
        "json",
        json.dumps(
            {"anyOf": [{"type": "object", "properties": {f"p{i}_{j}": {"type": "string"} for i in range(60)}} for j in range(200)]}
        ),
    ),
]


@pytest.mark.parametrize("form", HOSTILE, ids=lambda form: f"{form.kind} {form.text[:24]}")
def test_hostile_forms_cost_their_request_and_little_time(engine: Engine, grammars: Grammars, form: Form) -> None:
    began = time.monotonic()
    try:
        tokens, said = answer(engine, grammars, form, replace(PARAMS, max_tokens=8)), "."
    except InvalidRequest as problem:
        tokens, said = [], str(problem)
    assert len(tokens) <= 8
    assert said.endswith(".")
    assert "\n" not in said
    assert time.monotonic() - began < 20
    assert engine.idle


def test_a_form_is_not_used_up_by_the_answers_that_had_it(engine: Engine) -> None:
    """Each is within the bound on states, all together are not."""
    import llguidance

    own = Grammars(engine.tokenizer, engine.vocabulary)
    own._limits = llguidance.LLParserLimits(max_lexer_states=700, verbose_errors=False)
    for letter in "abcabc":
        state = own.compile(Form("regex", "a{0,500}b{0,500}c{0,500}"))()
        tokens = engine.tokenizer.encode(letter * 400, add_bos=False)
        for at, token in enumerate(tokens):
            state.allowed_after([*tokens[at : at + 3]])
            allowed = state.allowed_after([])
            assert allowed is not None
            assert allowed[token]
            state.accept([token])
    own._limits = llguidance.LLParserLimits(max_lexer_states=300, verbose_errors=False)
    state = own.compile(Form("regex", "a{0,501}"))()
    with pytest.raises(InvalidRequest, match="too hard to follow"):
        state.accept(engine.tokenizer.encode("a" * 400, add_bos=False))


def test_compiled_forms_are_a_tenants_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Grammars(engine.tokenizer, engine.vocabulary)
    made: list[str] = []
    compile_form = own._made
    monkeypatch.setattr(own, "_made", lambda form: made.append(form.text) or compile_form(form))  # type: ignore[func-returns-value]
    monkeypatch.setattr("hasten.engine.grammar.MOST_COMPILED", 4)
    form = Form("regex", "a{1,9}")
    for tenant in ("anna", "anna", "bob", "bob"):
        own.compile(form, tenant)
    assert len(made) == 2, "what one has asked for takes another as long as if nobody had"
    made.clear()
    for number in range(9):
        own.compile(Form("regex", f"b{{1,{number + 1}}}"), "anna")
    assert len(made) == 9
    own.compile(form, "bob")
    assert len(made) == 9, "many forms of one tenant push out none of another's"
    own.compile(form, "anna")
    assert len(made) == 10


def test_ends_and_forms_exclude_each_other(engine: Engine, grammars: Grammars) -> None:
    with pytest.raises(InvalidRequest, match="ignore_eos"):
        answer(engine, grammars, choice(["a"]), replace(PARAMS, ignore_eos=True))


def test_a_form_needs_an_end_that_the_vocabulary_has(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9999]}))
    stray = load_tokenizer(folder)
    state = Grammars(stray, stray.vocabulary_size).compile(choice(["ab"]))()
    said = state.allowed_after(stray.encode("ab", add_bos=False))
    assert said is None or said[stray.eos_token_ids[0]]
    without = load_tokenizer(byte_level_folder(tmp_path, eos_token=None))
    assert without.eos_token_ids == ()
    with pytest.raises(InvalidRequest, match="no token that ends an answer"):
        Grammars(without, without.vocabulary_size)


def test_a_grammar_that_leaves_nothing_ends_its_request_only(engine: Engine) -> None:
    class Nothing:
        def allowed_after(self, path: Any) -> torch.Tensor:
            return torch.zeros(engine.vocabulary, dtype=torch.bool)

        def accept(self, tokens: Any) -> None:
            pass

    prompt = engine.tokenizer.encode("one two", add_bos=True)
    bad = engine.submit(prompt, replace(PARAMS, n=2), constraint=Nothing)
    good = engine.submit(prompt, replace(PARAMS, max_tokens=12, ignore_eos=True))
    run_all(engine, [good])
    assert len(good.answers[0].sequence.output) == 12
    assert bad.problem is not None
    assert [one.sequence.finish_reason for one in bad.answers] == ["error", "error"]
