"""What callers of ``LLM`` give: arrays and tensors are token ids, and whatever cannot be taken is refused in one sentence."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hasten.core.config import SpeculationParams
from hasten.core.errors import HastenError, InvalidRequest
from hasten.core.types import SamplingParams
from hasten.draft.suffix import SuffixDrafter
from hasten.engine.llm import LLM
from test_exact import GREEDY
from tiny import tiny_engine

IDS = [3, 1, 4, 1, 5]
FEW = replace(GREEDY, max_tokens=3)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setattr("hasten.engine.llm.load_engine", lambda config, progress: tiny_engine("llama", [SuffixDrafter()]))
    return LLM("tiny")


@pytest.mark.parametrize(
    "given",
    [
        IDS,
        tuple(IDS),
        np.array(IDS),
        np.array(IDS, np.uint8),
        torch.tensor(IDS),
        list(np.array(IDS)),
        list(torch.tensor(IDS)),
        iter(IDS),
    ],
    ids=["list", "tuple", "array", "bytes", "tensor", "numbers of an array", "numbers of a tensor", "iterator"],
)
def test_token_ids_of_every_kind(llm: LLM, given: Any) -> None:
    again = copy.deepcopy(given)
    assert llm.generate(given, FEW)[0].tokens == llm.generate([list(IDS)], FEW)[0].tokens
    assert llm.generate([again, "ab"], FEW)[0].usage.prompt_tokens == len(IDS)


def test_an_array_of_one_is_a_prompt_and_no_token(llm: LLM) -> None:
    assert len(llm.generate([torch.tensor([3]), torch.tensor([4])], FEW)) == 2
    assert len(llm.generate(np.array(["ab", "cd"]), FEW)) == 2
    assert llm.encode(np.array(IDS)) == IDS
    assert llm.decode(np.array(IDS)) == llm.decode(tuple(IDS)) == llm.decode(list(IDS))


WANTED = r"^A prompt must be a text, or token ids \(a list, or an array of one dimension, of whole numbers\), not .*\.$"


@pytest.mark.parametrize(
    "given",
    [
        None,
        5,
        b"abc",
        [True, False],
        [1, "a"],
        [1.5],
        [None],
        {"a": 1},
        {"a"},
        [b"abc"],
        [[True]],
        np.array([1.5]),
        np.array([True]),
        np.zeros((2, 2), int),
        np.array(3),
        torch.zeros(2),
        torch.zeros((1, 2), dtype=torch.long),
        [["a"]],
    ],
    ids=repr,
)
def test_what_is_no_prompt_is_refused_in_one_sentence(llm: LLM, given: Any) -> None:
    with pytest.raises(InvalidRequest, match=WANTED):
        llm.generate(given, FEW)
    for ask in (llm.stream, llm.check, lambda one, params: llm.encode(one)):
        with pytest.raises(InvalidRequest, match=WANTED):
            ask(given, FEW)
    assert llm.engine.idle


Call = Callable[[LLM], object]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda llm: llm.stream(["ab", "cd"], FEW), WANTED),
        (lambda llm: llm.generate("ab", {"max_tokens": 4}), r"^params must be SamplingParams\(\.\.\.\), or a list .* not \{"),
        (lambda llm: llm.generate(["ab"], [None]), r"^params must be SamplingParams\(\.\.\.\), or a list .* not \[None\]\.$"),
        (lambda llm: llm.generate(["ab"], 5), r"^params must be SamplingParams\(\.\.\.\), or a list .* not 5\.$"),
        (lambda llm: llm.stream("ab", {"max_tokens": 4}), r"^params must be SamplingParams\(\.\.\.\), not "),
        (lambda llm: llm.check("ab", [FEW]), r"^params must be SamplingParams\(\.\.\.\), not "),
        (lambda llm: llm.generate("ab", FEW, speculation="off"), r"^speculation must be SpeculationParams, .* not 'off'\.$"),
        (lambda llm: llm.stream("ab", FEW, speculation=None), r"^speculation must be SpeculationParams, .* not None\.$"),
        (lambda llm: llm.generate("ab", FEW, thinking=True), r"^thinking must be the model's own .* not True\.$"),
        (lambda llm: llm.generate("ab", FEW, prediction=5), r"^prediction must be a text, or token ids .* not 5\.$"),
        (lambda llm: llm.generate("ab", FEW, tenant=None), r"^tenant must be a text, not None\.$"),
        (lambda llm: llm.generate("ab", FEW, form=5), r"^form must be a JSON schema as a dict, or a Form .* not 5\.$"),
        (lambda llm: llm.decode([10**9]), r"^There is no token id 1000000000; this model's ids go from 0 to 60\.$"),
        (lambda llm: llm.decode([-1]), r"^There is no token id -1; this model's ids go from 0 to 60\.$"),
        (lambda llm: llm.decode("ab"), r"^tokens must be token ids .* not 'ab'\.$"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_one_sentence(llm: LLM, call: Call, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        call(llm)
    assert llm.engine.idle


def test_parameters_one_by_one(llm: LLM) -> None:
    wanted = [SamplingParams(max_tokens=count) for count in (1, 2)]
    assert [len(each.tokens) for each in llm.generate(["ab", "cd"], (one for one in wanted))] == [1, 2]
    assert [len(each.tokens) for each in llm.generate((text for text in ("ab", "cd")), wanted)] == [1, 2]
    llm.check("ab")
    assert llm.stream("ab", prediction=torch.tensor(IDS), speculation=SpeculationParams("off"))


def test_they_say_what_they_are(llm: LLM) -> None:
    assert repr(llm) == "LLM('tiny-llama', precision='fp64')"
    stream = llm.stream("ab", FEW)
    assert repr(stream) == "EventStream('request-0', running)"
    list(stream)
    assert repr(stream) == "EventStream('request-0', finished)"
    llm.close()
    assert repr(llm) == "LLM('tiny-llama', precision='fp64', closed)"


def test_neither_can_be_pickled_and_both_say_so(llm: LLM) -> None:
    for dump in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(HastenError, match=r"^A loaded model cannot be pickled or copied; send its config, .*\.$"):
            dump(llm)
        with pytest.raises(HastenError, match=r"^A stream cannot be pickled or copied; send its events\.$"):
            dump(llm.stream("ab", FEW))


def test_a_stream_is_closed_behind_its_block(llm: LLM) -> None:
    with llm.stream("ab", replace(GREEDY, max_tokens=40)) as stream:
        assert next(stream).tokens
        assert not llm.engine.idle
    assert llm.engine.idle
    assert next(stream, None) is None
