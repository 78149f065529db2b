"""The library's front door on a tiny engine: prompts of every form, streams that are interleaved, dropped and closed."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from hasten.core.config import SpeculationParams
from hasten.core.errors import ConfigError, HastenError, InvalidRequest, ModelError
from hasten.core.results import Completion
from hasten.core.types import DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget
from hasten.draft.suffix import SuffixDrafter
from hasten.engine.llm import LLM, EventStream
from hasten.engine.requests import Request
from test_exact import GREEDY, SAMPLED, prompt_of
from tiny import LetterTokenizer, damage_logits, naive_text, tiny_engine

KIND = "llama"


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setattr("hasten.engine.llm.load_engine", lambda config, progress: tiny_engine(KIND, [SuffixDrafter()]))
    return LLM("tiny")


def expected(text: str, params: SamplingParams) -> str:
    tokenizer = LetterTokenizer()
    return tokenizer.decode(naive_text(KIND, tuple(tokenizer.encode(text)), replace(params, seed=params.seed or 0)))


def test_every_form_of_prompts(llm: LLM) -> None:
    tokens = list(prompt_of(12, 1))
    text = LetterTokenizer().decode(tokens)
    for prompts in (text, tokens):
        assert [c.text for c in llm.generate(prompts, GREEDY)] == [expected(text, GREEDY)]
    both = llm.generate([text, tokens, "Hello"], [GREEDY, SAMPLED, GREEDY])
    assert [c.text for c in both] == [expected(text, GREEDY), expected(text, SAMPLED), expected("Hello", GREEDY)]
    assert llm.generate([]) == []


def test_on_done_hears_of_each_once(llm: LLM) -> None:
    heard: list[int] = []
    llm.generate(["abc", "d", "xyz"], [replace(GREEDY, max_tokens=n) for n in (30, 3, 12)], on_done=lambda at, c: heard.append(at))
    assert sorted(heard) == [0, 1, 2]
    assert heard[0] == 1


def test_streams_read_in_turns(llm: LLM) -> None:
    first, second = llm.stream("one two one two", GREEDY), llm.stream("three", SAMPLED)
    texts = ["", ""]
    streams = [first, second]
    while streams:
        for stream in list(streams):
            event = next(stream, None)
            if event is None:
                streams.remove(stream)
            else:
                texts[0 if stream is first else 1] += event.text
    assert texts == [expected("one two one two", GREEDY), expected("three", SAMPLED)]


def test_a_stream_can_be_left_between_the_steps_of_its_prompt(llm: LLM) -> None:
    stream = llm.stream(list(prompt_of(400, 1)), GREEDY)
    assert not stream.step()
    stream.close()
    assert stream.step()
    assert llm.engine.idle
    again = llm.stream("one two", GREEDY)
    while not again.step():
        pass
    assert "".join(event.text for event in again) == expected("one two", GREEDY)


def test_a_stream_beside_generate_loses_nothing(llm: LLM) -> None:
    stream = llm.stream("one two one two", GREEDY)
    pieces = [next(stream).text]
    assert llm.generate("three", SAMPLED)[0].text == expected("three", SAMPLED)
    pieces += [event.text for event in stream]
    assert "".join(pieces) == expected("one two one two", GREEDY)


@pytest.mark.parametrize("read", [0, 1, 3])
def test_a_stream_that_is_let_go_of_is_cancelled(llm: LLM, read: int) -> None:
    stream = llm.stream("one two", GREEDY)
    for _ in range(read):
        next(stream)
    del stream
    assert llm.engine.idle
    llm.engine.scheduler.check_integrity()


class Collecting(SuffixDrafter):
    """Python collects garbage while a step is in progress, as it may at any time."""

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        gc.collect()
        return super().propose(sequences, budgets)


class Holder:
    """Refers to itself, so that only the garbage collector ends it."""

    def __init__(self, stream: EventStream) -> None:
        self.stream, self.me = stream, self


def test_a_stream_let_go_of_within_a_step_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.engine.llm.load_engine", lambda config, progress: tiny_engine(KIND, [Collecting()]))
    llm = LLM("tiny")
    wanted = expected("three", SAMPLED)
    gc.collect()
    gc.freeze()  # every collection below would go through all that other tests have left
    try:
        holder = Holder(llm.stream("one two one two", GREEDY))
        for _ in range(2):
            next(holder.stream)
        del holder
        assert llm.generate("three", SAMPLED)[0].text == wanted
    finally:
        gc.unfreeze()
    assert llm.engine.idle
    assert llm.engine.scheduler.blocks.used == 0


@pytest.mark.parametrize("n", [1, 3])
def test_what_ends_a_request_early_is_raised_by_generate(llm: LLM, n: int) -> None:
    damage_logits(llm.engine, 10)
    with pytest.raises(ModelError, match="No token can be chosen at position 10"):
        llm.generate(["three", "one two"], [replace(SAMPLED, n=n, max_tokens=3), replace(SAMPLED, n=n)])
    assert llm.engine.idle
    assert llm.generate("three", replace(GREEDY, max_tokens=3))[0].finish_reason == "length"


def test_what_ends_a_request_early_is_raised_by_its_stream_after_its_events(llm: LLM) -> None:
    damage_logits(llm.engine, 10)
    stream = llm.stream("one two", GREEDY)
    tokens = [token for _ in range(3) for token in next(stream).tokens]
    assert LetterTokenizer().decode(tokens) == expected("one two", replace(GREEDY, max_tokens=3))
    for _ in range(2):
        with pytest.raises(ModelError, match="No token can be chosen at position 10"):
            next(stream)
    assert llm.engine.idle


def test_closing_while_prompts_are_answered_ends_generate(llm: LLM) -> None:
    def close(place: int, completion: Completion) -> None:
        llm.engine.cancel_all()

    with pytest.raises(HastenError, match="A prompt was cancelled"):
        llm.generate(["one", "two"], [replace(GREEDY, max_tokens=2), GREEDY], on_done=close)


def test_a_closed_model_says_so_and_may_be_closed_again(llm: LLM) -> None:
    with llm:
        stream = llm.stream("one", GREEDY)
        llm.close()
        assert next(stream, None) is None
        with pytest.raises(HastenError, match=r"^This model is closed; make another LLM\.$"):
            llm.generate("two", GREEDY)
    assert llm.engine.drafting.drafters == []


def test_generate_looks_only_at_those_that_have_news(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, finished = 0, Request.finished.fget
    assert finished is not None

    def counted(request: Request) -> bool:
        nonlocal looked
        looked += 1
        return bool(finished(request))

    monkeypatch.setattr(Request, "finished", property(counted))
    prompts = [list(prompt_of(12, seed)) for seed in range(100)]
    llm.generate(prompts, replace(GREEDY, max_tokens=6))
    assert looked < 30 * len(prompts)


def test_one_wrong_prompt_stops_all_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        llm.generate(["fine", ""], GREEDY)
    assert llm.engine.idle
    with pytest.raises(InvalidRequest, match="3 prompts but 2"):
        llm.generate(["a", "b", "c"], [GREEDY, GREEDY])


def test_a_model_without_template_does_not_chat(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_unknown_settings_offer_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'precision'"):
        LLM("tiny", precison="int8")


def test_speculation_is_a_wish_of_the_request(llm: LLM) -> None:
    text = "one two one two one two"
    off, few = SpeculationParams("off"), SpeculationParams("on", nodes=1)
    assert llm.generate(text, GREEDY, speculation=off)[0].speculation.drafted == 0
    with_few = llm.generate(text, GREEDY, speculation=few)[0]
    assert 0 < with_few.speculation.drafted <= with_few.speculation.rounds
    last = [event.completion for event in llm.stream(text, GREEDY, speculation=off)][-1]
    assert last is not None
    assert last.speculation.drafted == 0
    assert last.verify == "coupled"
    assert last.to_json()["verify"] == "coupled"
