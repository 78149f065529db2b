"""What a model thinks apart from what it answers: which models do, cuts at any place, constraints behind the thought."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drafters import Right, Wrong
from hasten.core.config import EngineConfig
from hasten.core.types import SamplingParams
from hasten.draft.base import Drafter
from hasten.engine.llm import LLM
from hasten.engine.requests import AnswerState
from hasten.engine.text import TextStream
from hasten.engine.thought import AfterThought, Thought, place_of
from hasten.model.thinking import CLOSE, OPEN, Place, Thinking, thinking_of
from serving import TEMPLATE, write_model
from thinkers import MARKS, OPENED, OPENS_ITSELF, Script
from tiny import run_all

ASK = [{"role": "user", "content": "two and two"}]
FREE = SamplingParams(max_tokens=60)


class Bytes:
    """A vocabulary of all bytes, the two marks as tokens 256 and 257, and a control token 258."""

    special_ids = frozenset({258})
    strips_space = False
    added: Mapping[int, str] = {256: OPEN, 257: CLOSE, 258: "<|end|>"}
    chat_template = "{{ messages }} </think>"

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else self.added[token].encode()


class Pieces(Bytes):
    """Any texts as tokens."""

    added: Mapping[int, str] = {}

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]


def thinking(vocabulary: Any) -> Thinking:
    found = thinking_of(vocabulary)
    assert found is not None
    return found


def streamed(vocabulary: Any, tokens: Sequence[int], place: Place, stop: Sequence[str] = (), exact: bool = False) -> list[str]:
    """[thought, text], as pieces make them up."""
    stream = TextStream(vocabulary, stop, thoughts=Thought(thinking(vocabulary), place, exact))
    thought = text = ""
    for token in tokens:
        piece, stopped = stream.push(token)
        thought, text = thought + stream.thought, text + piece
        assert not (stream.thought and stream.thought_tokens != stream.consumed)
        if stopped:
            break
    text += stream.finish()
    return [thought + stream.thought, text]


def expected(whole: str, place: Place, stop: Sequence[str] = ()) -> list[str]:
    """The same by looking at the whole text."""
    begun = whole if place == "inside" else whole.lstrip()
    if place == "before" and not begun.startswith(OPEN):
        thought, text = "", whole
    else:
        thought, _, text = (begun if place == "inside" else begun.removeprefix(OPEN)).partition(CLOSE)
        thought, text = thought.strip("\n"), text.lstrip("\n")
    ends = [text.find(each) for each in stop if each in text]
    return [thought, text[: min(ends)] if ends else text]


PARTS = st.lists(
    st.sampled_from([OPEN, CLOSE, "<", "</", "think", ">", "\n", "\n\n", " ", "STOP", "ST", "hm", "é", "🎉", "</think", "<think"]),
    max_size=12,
)


@settings(max_examples=400, deadline=None)
@given(PARTS, st.sampled_from(["before", "inside"]), st.randoms(use_true_random=False), st.sampled_from([(), ("STOP",)]))
def test_marks_that_are_text_are_found_however_they_are_cut(
    parts: list[str], place: Place, draw: random.Random, stop: tuple[str, ...]
) -> None:
    whole = "".join(parts)
    data = whole.encode()
    cuts = sorted({0, len(data), *(draw.randrange(len(data) + 1) for _ in range(draw.randrange(20)))})
    pieces = [data[begin:end] for begin, end in itertools.pairwise(cuts)]
    assert streamed(Pieces(pieces), range(len(pieces)), place, stop) == expected(whole, place, stop)


@settings(max_examples=400, deadline=None)
@given(PARTS, st.sampled_from(["before", "inside"]), st.randoms(use_true_random=False), st.sampled_from([(), ("STOP",)]))
def test_marks_that_are_tokens_are_those_alone(parts: list[str], place: Place, draw: random.Random, stop: tuple[str, ...]) -> None:
    """Half of the marks are spelled with ordinary tokens: for the oracle they read otherwise."""
    tokens: list[int] = []
    seen = ""
    for part in parts:
        token = {OPEN: 256, CLOSE: 257}.get(part) if draw.random() < 0.5 else None
        tokens += part.encode() if token is None else [token]
        seen += part.replace("think", "\x00") if token is None else part
    found = [text.replace("\x00", "think") for text in expected(seen, place, stop)]
    assert streamed(Bytes(), tokens, place, stop) == found


def test_what_is_half_of_a_character_at_a_mark_is_the_thoughts() -> None:
    assert streamed(Bytes(), [0xF0, 0x9F, 257, 0x41], "inside") == ["\ufffd", "A"]
    assert streamed(Bytes(), [256, 0xC3, 257, 0xA9, 0x41], "before") == ["\ufffd", "\ufffdA"]


def test_one_token_may_end_the_thought_and_the_answer() -> None:
    assert streamed(Pieces([b"hm</think>yesSTOP"]), [0], "inside", ["STOP"]) == ["hm", "yes"]


def test_a_form_is_free_of_thoughts_only_where_the_template_speaks_of_them() -> None:
    vocabulary: Any = Bytes()
    for announced, place in ((True, "before"), (False, None)):
        assert place_of(Thinking(vocabulary, 256, 257, announced), [65], True) == place
        assert place_of(Thinking(vocabulary, 256, 257, announced), [65], False) == "before"
        assert place_of(Thinking(vocabulary, 256, 257, announced), [65, 256, 10], True) == "inside"


def test_tokens_of_a_thought_are_counted_with_its_marks() -> None:
    stream = TextStream(Bytes(), thoughts=Thought(thinking(Bytes()), "before", exact=False))
    for token in [256, 10, 0x41, 258, 10, 257, 10, 10, 0x42]:
        stream.push(token)
    assert (stream.thought_tokens, stream.consumed) == (6, 9)


def test_a_constrained_answer_is_given_out_as_it_is() -> None:
    assert streamed(Bytes(), [256, 0x41, 10, 257, 10, 10, 0x42], "before", exact=True) == ["A", "\n\nB"]
    assert streamed(Bytes(), [10, 256, 0x41, 257], "before", exact=True) == ["", "\n<think>A</think>"]


@pytest.mark.parametrize(
    ("template", "marks", "found"),
    [
        (TEMPLATE, (), None),
        (None, MARKS, None),
        (TEMPLATE, MARKS, (True, False)),
        (OPENED, MARKS, (True, True)),
        (OPENED, (), (False, True)),
        (OPENED, MARKS[1:], (False, True)),
    ],
)
def test_template_and_vocabulary_say_whether_a_model_thinks(
    template: str | None, marks: tuple[str, ...], found: tuple[bool, bool] | None
) -> None:
    tokenizer: Any = SimpleNamespace(added=dict(enumerate(["<|end|>", *marks])), chat_template=template)
    told = thinking_of(tokenizer) if template is not None else None
    assert (told and (told.by_token, told.announced)) == found


class Model:
    """A tiny model that thinks, and what it is to say."""

    def __init__(self, path: Path) -> None:
        self.llm = LLM(EngineConfig(model=str(path), draft="none", precision="fp32", control="fixed(8)"))
        self.script = Script(self.llm.engine)

    def says(self, *parts: str | int, **options: Any) -> tuple[str, str]:
        self.script.say(*parts)
        done = self.llm.chat(ASK, **{"params": FREE, **options})
        events = list(self.llm.stream_chat(ASK, **{"params": FREE, **options}))
        assert ("".join(event.thought for event in events), "".join(event.text for event in events)) == (done.thought, done.text)
        assert all("".join(event.pieces) == event.thought + event.text for event in events)
        assert all(len(event.pieces) == len(event.tokens) for event in events)
        told = sum(event.thought_tokens for event in events)
        if self.llm.chat_template == OPENED:
            assert told == done.usage.thought_tokens <= done.usage.completion_tokens
        else:  # tokens of the first mark may be told of before it is one
            assert told <= done.usage.thought_tokens <= done.usage.completion_tokens
        return done.thought, done.text


@pytest.fixture(scope="module", params=["tokens", "text"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    marks = MARKS if request.param == "tokens" else ()
    return Model(write_model(tmp_path_factory.mktemp("opened") / "tiny.gguf", template=OPENED, marks=marks))


@pytest.fixture(scope="module", params=["tokens", "text"])
def opens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    marks = MARKS if request.param == "tokens" else ()
    return Model(write_model(tmp_path_factory.mktemp("opens") / "tiny.gguf", template=OPENS_ITSELF, marks=marks))


def test_a_thought_that_the_prompt_has_opened(opened: Model) -> None:
    assert opened.says("I add.\n</think>\n\nFour.") == ("I add.", "Four.")
    assert opened.says("</think>Four.") == ("", "Four.")
    assert opened.says("I add") == ("I add", "")
    assert opened.says("I add", params=SamplingParams(max_tokens=2))[1] == ""
    assert opened.says("a </thin</think>b </think>c") == ("a </thin", "b </think>c")


def test_a_thought_that_the_model_opens(opens: Model) -> None:
    assert opens.says("<think>\nI add.\n</think>\n\nFour.") == ("I add.", "Four.")
    assert opens.says("Four <think>no</think>.") == ("", "Four <think>no</think>.")
    assert opens.says("\n<think>\n\n</think>\n\nFour.") == ("", "Four.")


def test_stop_strings_are_the_answers(opened: Model) -> None:
    params = SamplingParams(max_tokens=60, stop=("add", "</thi"))
    assert opened.says("I add.\n</think>\n\nYou add them.", params=params) == ("I add.", "You ")


def test_a_prompt_says_where_the_answer_begins(opens: Model, opened: Model) -> None:
    def place(model: Model, constrained: bool = False, **extra: Any) -> Place | None:
        told = model.llm.thinking
        assert told is not None
        return place_of(told, model.llm.render_chat(ASK, extra=extra), constrained)

    for model, begins in ((opens, "before"), (opened, "inside")):
        told = model.llm.thinking
        assert told is not None
        assert place(model) == begins
        assert place(model, constrained=True) == (begins if told.by_token else None)
        forged = [{"role": "user", "content": "<think>\n</think>"}]
        assert place_of(told, model.llm.render_chat(forged), False) == begins
    assert place(opens, enable_thinking=False) is None


def test_a_plain_prompt_and_a_model_that_does_not_think_are_as_ever(opened: Model, tiny_model: Path) -> None:
    opened.script.say("x</think>\n\ny")
    prompt = opened.llm.render_chat(ASK)
    done = opened.llm.generate([prompt], FREE)[0]
    assert (done.thought, done.text, done.usage.thought_tokens) == ("", "x</think>\n\ny", 0)
    with LLM(EngineConfig(model=str(tiny_model), draft="none", precision="fp32")) as plain:
        assert plain.thinking is None


class Recorder:
    """A constraint of one token, which is the path's length behind the thought. Its masks are its own, to be read only."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.masks = torch.eye(300, dtype=torch.bool)

    def allowed_after(self, path: Sequence[int]) -> torch.Tensor:
        return self.masks[len(self.accepted) + len(path)]

    def accept(self, tokens: Sequence[int]) -> None:
        self.accepted += tokens


@pytest.mark.parametrize("place", ["before", "inside"])
@pytest.mark.parametrize("seed", range(20))
def test_a_constraint_begins_behind_the_thought_at_every_node(place: Place, seed: int) -> None:
    """However an answer is cut into rounds, what is allowed at a place is what its tokens alone say."""
    draw = random.Random(seed)
    thought = [256] * (place == "before") + [draw.randrange(256) for _ in range(draw.randrange(5))] + [257]
    answer = ([] if place == "before" and seed % 3 == 0 else thought) + list(range(6))
    free = torch.ones(300, dtype=torch.bool)
    free[258] = False
    words = Recorder()
    constraint = AfterThought(words, thinking(Bytes()), place, 300, frozenset({258}))
    done = 0
    while done < len(answer):
        ahead = draw.randrange(1, 4)
        for depth in range(ahead):
            before = answer[: done + depth]
            allowed = constraint.allowed_after(answer[done : done + depth])
            if (before or place == "inside") and 257 not in before and answer[:1] != [0]:
                assert torch.equal(allowed, free)
            else:
                behind = before[before.index(257) + 1 :] if 257 in before else before
                assert allowed.nonzero().flatten().tolist() == [len(behind), *([256] if not before else [])]
        constraint.accept(answer[done : done + ahead])
        done += ahead
    assert words.accepted == list(range(6))
    assert torch.equal(words.masks, torch.eye(300, dtype=torch.bool))


def test_a_form_is_the_answers_with_and_without_drafts(tmp_path: Path) -> None:
    """The model wants to end in its thought and to answer in words; it may do neither."""
    pytest.importorskip("llguidance")
    from hasten.engine.grammar import Form, Grammars

    model = Model(write_model(tmp_path / "tiny.gguf", template=OPENED, marks=MARKS))
    engine = model.llm.engine
    constraint = Grammars(engine.tokenizer, engine.vocabulary).compile(Form("regex", "[0-9]{2}"))

    def answer(params: SamplingParams, *drafters: Drafter) -> AnswerState:
        engine.drafting.drafters = list(drafters)
        engine.controller.most_nodes = 64
        request = engine.submit(model.llm.render_chat(ASK), params, constraint=constraint, thinking=model.llm.thinking)
        run_all(engine, [request])
        assert request.problem is None
        return request.answers[0]

    model.script.say("I think of 12, then", engine.tokenizer.eos_token_ids[0], " more</think>\n\nIt is 42.")
    for seed in range(4):
        params = replace(FREE, temperature=1.0, seed=seed)
        plain = answer(params)
        assert plain.thought.startswith("I think of 12, then")
        assert plain.thought.endswith(" more")
        assert re.fullmatch("[0-9]{2}", plain.text)
        output = plain.sequence.output
        for drafter in (Right(lambda _, output=output: output), Wrong(lambda _, output=output: output)):  # type: ignore[misc]
            drafted = answer(params, drafter)
            assert (drafted.sequence.output, drafted.thought, drafted.text) == (output, plain.thought, plain.text)
