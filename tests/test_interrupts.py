"""Ctrl-C while the engine works: heard between two entries of its books, and within a forward pass at once."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterator
from types import FrameType

import pytest

from hasten.core.results import StreamEvent
from hasten.core.types import Batch, DraftTree, Sequence, Verdict
from hasten.draft.suffix import SuffixDrafter
from hasten.engine import interrupts
from hasten.engine.interrupts import interrupts_held_back, interrupts_let_through
from hasten.engine.llm import LLM
from test_exact import GREEDY, prompt_of
from tiny import tiny_engine


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert interrupts._State.depth == 0, "blocks have ended"
    if signal.getsignal(signal.SIGINT) is not before:
        with pytest.raises(KeyboardInterrupt):  # outside of blocks as ever
            press()
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_held_back_until_the_end_of_the_outermost_block() -> None:
    done = []

    @interrupts_held_back()
    def inner() -> None:
        press()
        done.append("inner")

    @interrupts_held_back()
    def outer() -> None:
        inner()
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["inner", "outer"]
    with interrupts_held_back():
        done.append("a later block is not interrupted for it")


def test_held_back_again_where_a_notebook_has_put_python_s_handler_back() -> None:
    done = []
    for cell in range(3):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt), interrupts_held_back():  # noqa: PT012
            press()
            done.append(cell)
    assert done == [0, 1, 2]


def test_the_second_one_is_not_held_back() -> None:
    done = []

    @interrupts_held_back()
    def pressed_twice() -> None:
        press()
        done.append("first")
        press()
        done.append("second")

    with pytest.raises(KeyboardInterrupt):
        pressed_twice()
    assert done == ["first"]


def test_let_through_within_a_block_that_holds_back() -> None:
    done = []

    @interrupts_held_back()
    def work(early: bool) -> None:
        with interrupts_let_through():
            if early:
                press()
            done.append("let through")
        press()
        done.append("held back again")

    with pytest.raises(KeyboardInterrupt):
        work(early=True)
    assert done == []
    with pytest.raises(KeyboardInterrupt):
        work(early=False)
    assert done == ["let through", "held back again"]


def test_a_handler_of_the_program_s_own_stays() -> None:
    heard: list[int] = []

    def own(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    signal.signal(signal.SIGINT, own)
    with interrupts_held_back():
        with interrupts_let_through():
            press()
        press()
        assert signal.getsignal(signal.SIGINT) is own
    assert len(heard) == 2
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_threads_are_left_alone() -> None:
    done = []

    def work() -> None:
        with interrupts_held_back(), interrupts_let_through():
            done.append("worked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["worked"]


class Interrupting(SuffixDrafter):
    """Somebody presses Ctrl-C when the tokens of a step are kept but not told."""

    asked = False

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        if self.asked and sequence.output_length > 8:
            self.asked = False
            press()
        super().observe(sequence, tree, verdict)


@pytest.fixture
def drafter() -> Interrupting:
    return Interrupting()


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, drafter: Interrupting) -> LLM:
    monkeypatch.setattr("hasten.engine.llm.load_engine", lambda config, progress: tiny_engine(drafters=[drafter]))
    return LLM("tiny")


def test_an_interrupted_step_is_done_first(llm: LLM, drafter: Interrupting) -> None:
    """Its text is told once, in the events and in the completion, of whoever has asked."""
    prompt, plain = list(prompt_of(40, 1)), llm.generate(list(prompt_of(40, 1)), GREEDY)[0].text
    stream = llm.stream(prompt, GREEDY)
    events = [next(stream), next(stream)]
    drafter.asked = True
    with pytest.raises(KeyboardInterrupt):
        llm.generate(list(prompt_of(40, 2)), GREEDY)
    llm.engine.scheduler.check_integrity()
    assert len(llm.engine.scheduler.running) == 1, "what generate had asked for is gone"
    events += list(stream)
    completion = events[-1].completion
    assert completion is not None
    assert completion.text == "".join(event.text for event in events) == plain


def test_a_forward_pass_is_interrupted_at_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt takes seconds, and nothing is entered in the books meanwhile."""
    prompt, plain = list(prompt_of(40, 1)), llm.generate(list(prompt_of(40, 1)), GREEDY)[0].text
    stream = llm.stream(prompt, GREEDY)
    events = [next(stream), next(stream)]
    with monkeypatch.context() as patch:

        def interrupted(batch: Batch) -> None:
            press()
            raise AssertionError("the pass goes on")

        patch.setattr(llm.engine.executor, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    events += list(stream)
    assert "".join(event.text for event in events) == plain
    assert llm.engine.idle


def test_prompts_of_an_interrupted_call_do_not_stay(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the second of them is taken in."""
    begin = llm.engine.drafting.begin

    def interrupted(sequence: Sequence, *wish: object) -> None:
        if sequence.prompt_length == 5:
            press()
        begin(sequence, *wish)  # type: ignore[arg-type]

    monkeypatch.setattr(type(llm.engine.drafting), "begin", lambda self, *arguments: interrupted(*arguments))
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1, 2, 3], [1, 2, 3, 4, 5], [1]], GREEDY)
    assert llm.engine.idle


class Pressing(deque[StreamEvent]):
    """Somebody presses Ctrl-C when the third event has just come in."""

    heard = 0

    def append(self, event: StreamEvent) -> None:
        super().append(event)
        self.heard += 1
        if self.heard == 3:
            press()


def test_an_event_that_is_told_when_a_handler_of_the_program_s_own_raises_is_told_once(llm: LLM) -> None:
    def own(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    prompt = list(prompt_of(40, 1))
    plain = llm.generate(prompt, GREEDY)[0]
    signal.signal(signal.SIGINT, own)
    stream = llm.stream(prompt, GREEDY)
    stream._request.inbox = Pressing()
    events: list[StreamEvent] = []
    with pytest.raises(KeyboardInterrupt):
        events.extend(event for event in stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    events += stream
    assert [token for event in events for token in event.tokens] == plain.tokens
    assert "".join(event.text for event in events) == plain.text


def test_who_waits_for_another_thread_can_be_interrupted(llm: LLM) -> None:
    within, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with llm.engine.turn:
            within.set()
            enough.wait(20)

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    holder, clock = threading.Thread(target=hold), threading.Timer(0.2, interrupt)
    holder.start()
    assert within.wait(20)
    clock.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            llm.generate([1, 2, 3], GREEDY)
        assert holder.is_alive()
    finally:
        enough.set()
        holder.join()
        clock.join()
    assert llm.engine.idle
