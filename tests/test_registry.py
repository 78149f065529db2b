"""How a user writes drafters: names, arguments that are literals or plain words, and nothing that could be executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.cli.options import without_past
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.registry import Spec, parse_specs
from hasten.draft.specs import check_specs
from hasten.engine.loading import load_engine


def test_specs_are_read() -> None:
    assert parse_specs("suffix") == [Spec("suffix")]
    assert parse_specs("suffix + lm(tree=rsd-s, width=4)") == [Spec("suffix"), Spec("lm", {"tree": "rsd-s", "width": 4})]
    assert parse_specs("lm(tree='top-k', branching=(3, 2, 1), trim=False, model=None)") == [
        Spec("lm", {"tree": "top-k", "branching": (3, 2, 1), "trim": False, "model": None})
    ]
    assert parse_specs("foreign(match=tokens, width=-1)") == [Spec("foreign", {"match": "tokens", "width": -1})]


@pytest.mark.parametrize("text", ["suffix", "lm(tree=rsd-s, branching=(3, 2), trim=None)+memory(path='/a b/c.sqlite')"])
def test_specs_are_written_as_they_are_read(text: str) -> None:
    specs = parse_specs(text)
    assert parse_specs("+".join(map(str, specs))) == specs


@pytest.mark.parametrize(
    ("draft", "measured"),
    [
        ("auto", "auto"),
        ("suffix+memory(tenants=4)", "suffix+memory(path=None, tenants=4)"),
        ("memory(path=None)", "memory(path=None)"),
        ("memory(path='/tmp/mine')", "memory(path='/tmp/mine')"),
    ],
)
def test_what_is_measured_knows_no_earlier_run(draft: str, measured: str) -> None:
    assert without_past(EngineConfig(draft=draft)).draft == measured


@pytest.mark.parametrize(
    "text", ["", "lm(", "lm(3)", "lm(**x)", "lm(tree=print())", "lm(tree=a.b)", "lm(tree=a+b)", "lm(x=1-2)", "lm(x=[y for y in z])"]
)
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a drafter spec"):
        parse_specs(text)


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        ("lm(tree=oak)", "chain, rsd-c, rsd-s, top-k"),
        ("lm(width=0)", "width .* from 1 to 64"),
        ("lm(tree=rsd-c, branching=(2, 0))", "branching .* from 1 to 64"),
        ("foreign(branching=3)", "branching .* from 1 to 64"),
        ("lmm", "did you mean 'lm'"),
        ("zzz", "known are: auto, foreign, .*, none, "),
        ("suffix(foo=3)", "The suffix drafter has no argument 'foo'; it takes none"),
        ("none(foo=3)", "The none drafter has no argument 'foo'; it takes none"),
        ("trie+memory(vocabulary=x)", "no argument 'vocabulary'; it takes path, tokens, tenants"),
        ("lm(widht=3)", "no argument 'widht'; it takes width, tree, branching, model, precision, trim, match"),
        ("foreign(trim=True)", "no argument 'trim'; it takes match, width, tree, branching, model, precision"),
        ("speculator(head=3)", "no argument 'head'; it takes width, tree, branching"),
        ("none+none", "named twice"),
        ("none+suffix", "none stands for plain decoding .* give none, or suffix"),
        ("auto+none+lm(width=2)", r"none stands for plain decoding .* give none, or auto\+lm\(width=2\)"),
    ],
)
def test_what_is_wrong_with_a_drafter_is_said_before_anything_is_loaded(draft: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_engine(EngineConfig(model="/nowhere/at/all", draft=draft))


@pytest.mark.parametrize("draft", ["lm", "suffix+foreign"])
def test_a_drafter_without_a_model_is_told_the_option_that_names_one(
    draft: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.engine.loading.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"name one by --draft-model, or as (lm|foreign)\(model=NAME\)"):
        load_engine(EngineConfig(model=str(tiny_model), draft=draft))


def test_a_match_is_for_another_vocabulary(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="match is for draft models of another vocabulary"):
        load_engine(EngineConfig(model=str(tiny_model), draft="lm(match=tokens)", draft_model=str(tiny_model), cache_tokens=256))


def test_a_drafter_of_another_package_takes_what_its_signature_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(length: int, head: str = "") -> None: ...
    def any_of_them(**_: int) -> None: ...

    monkeypatch.setattr("hasten.core.registry.Registry.names", lambda _: ["own", "any"])
    monkeypatch.setattr("hasten.core.registry.Registry.resolve", lambda _, name: own if name == "own" else any_of_them)
    check_specs(parse_specs("own(length=3, head=x)+any(thing=4)"))
    with pytest.raises(ConfigError, match="it takes length, head"):
        check_specs(parse_specs("own(vocabulary=x)"))


@pytest.mark.parametrize("draft", ["none+lm", "lm+lm", "auto+none"])
def test_drafters_that_do_not_go_together_are_refused_by_whoever_reads_them(draft: str) -> None:
    with pytest.raises(ConfigError, match=r"named twice|none stands for"):
        EngineConfig(draft=draft).model_drafters()


@pytest.mark.parametrize("tokens", [1, 63])
def test_a_cache_of_less_than_a_block_is_refused(tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"cache_tokens must be at least 64, or 0 to have it chosen, not {tokens}"):
        EngineConfig(cache_tokens=tokens)
