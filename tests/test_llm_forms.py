"""Answers of a given form through the library's front door."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hasten.core.config import EngineConfig
from hasten.core.errors import InvalidRequest
from hasten.engine.llm import LLM
from test_grammar import PARAMS, SCHEMA, holds

pytest.importorskip("llguidance")
from hasten import Form
from hasten.engine.grammar import choice

ASK = [{"role": "user", "content": "one two"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTEN_HOME", str(tmp_path_factory.mktemp("home")))
        with LLM(EngineConfig(model=str(tiny_model), draft="none", precision="fp32")) as llm:
            yield llm


def test_a_dict_is_a_json_schema(llm: LLM) -> None:
    for completion in llm.generate(["one two", "three"], PARAMS, form=SCHEMA):
        assert holds(json.loads(completion.text)), completion.text


def test_forms_of_every_way_to_ask(llm: LLM) -> None:
    digits = Form("regex", "[0-9]{3}")
    params = replace(PARAMS, n=2)
    for completion in (llm.generate("one", params, form=digits)[0], llm.chat(ASK, params, form=digits)):
        assert [bool(re.fullmatch("[0-9]{3}", answer.text)) for answer in completion.answers] == [True, True]
    for stream in (llm.stream("one", PARAMS, form=choice(["yes", "no"])), llm.stream_chat(ASK, PARAMS, form=choice(["yes", "no"]))):
        assert "".join(event.text for event in stream) in ("yes", "no")


def test_a_form_that_cannot_be_held_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"^The JSON schema cannot be used \(.*\)\.$"):
        llm.generate("one", PARAMS, form={"type": "nonsense"})
    with pytest.raises(InvalidRequest, match=r"^The JSON schema cannot be written as JSON \(.*\); give dicts, .*\.$"):
        llm.stream("one", PARAMS, form={"const": {1, 2}})
    with pytest.raises(InvalidRequest, match="ignore_eos cannot be combined with a constraint"):
        llm.generate("one", replace(PARAMS, ignore_eos=True), form=SCHEMA)
    assert llm.engine.idle
