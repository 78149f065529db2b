"""How a user writes drafters: names, arguments that are literals or plain words, and nothing that could be executed."""

from __future__ import annotations

import pytest

from hasten.cli.options import without_past
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.registry import Spec, parse_specs
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
    ],
)
def test_what_is_wrong_with_a_drafter_is_said_before_anything_is_loaded(draft: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_engine(EngineConfig(model="/nowhere/at/all", draft=draft))
