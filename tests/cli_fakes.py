"""A model without weights for the command line's tests: tokens are words, answers are scripted, only core is imported."""

from __future__ import annotations

import io
import itertools
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import hasten
from hasten.cli.main import run
from hasten.core.config import EngineConfig, SpeculationParams
from hasten.core.errors import InvalidRequest, PromptTooLong
from hasten.core.results import Answer, Completion, CutBy, DraftCount, Speculation, Speed, StreamEvent, Timing, Usage
from hasten.core.types import FinishReason, SamplingParams

SOURCES = ("model", "suffix", "suffix", "lm")


class FakeStream(Iterator[StreamEvent]):
    """The events of an answer; the first is there after ``prompt_steps`` steps, each of ``delay_s``."""

    def __init__(self, events: Generator[StreamEvent, None, None], prompt_steps: int, delay_s: float) -> None:
        self.events, self.prompt_steps, self.delay_s = events, prompt_steps, delay_s

    def step(self) -> bool:
        if self.prompt_steps > 1:
            time.sleep(self.delay_s)
        self.prompt_steps -= 1
        return self.prompt_steps <= 0

    def __next__(self) -> StreamEvent:
        return next(self.events)

    def close(self) -> None:
        self.events.close()


class FakeLLM:
    """Answers with ``reply`` cut to max_tokens; ``made`` lists every instance, ``asked`` what it was asked."""

    reply = "The sky is blue because short waves scatter more than long ones do, as Rayleigh found."
    thought = ""
    template = True
    cut_by: CutBy = "max_tokens"
    delay_s = 0.0
    fail: BaseException | None = None
    prompt_steps = 1
    load_labels: tuple[str, ...] = ()
    order: Callable[[int], list[int]] = staticmethod(lambda count: list(range(count)))
    made: ClassVar[list[FakeLLM]] = []

    def __init__(self, config: EngineConfig, *, progress: Callable[[str, int, int], None]) -> None:
        for label in self.load_labels:
            for done in range(5):
                progress(label, done, 4)
                time.sleep(self.delay_s)
        self.config = config
        self.name, self.precision, self.context_length = config.model, "int8", 64
        self.has_chat_template = self.template
        self.asked: list[Any] = []
        self.params: list[SamplingParams] = []
        self.closed = False
        self.cancelled = 0
        self.vocabulary: list[str] = []
        type(self).made.append(self)

    def close(self) -> None:
        self.closed = True

    def render_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        if not self.has_chat_template:
            raise InvalidRequest(f"'{self.name}' has no chat template; give it a plain prompt.")
        return self._encode("".join(f"<{m['role']}>{m['content']}" for m in messages))

    def check(self, prompt: str | list[int], params: SamplingParams) -> None:
        length = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        if length > self.context_length:
            raise PromptTooLong(f"Prompt is too long: {length} tokens > {self.context_length} maximum; shorten it.")

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.vocabulary[token] for token in tokens)

    def generate(
        self,
        prompts: list[str | list[int]],
        params: list[SamplingParams],
        on_done: Callable[[int, Completion], None] | None = None,
        speculation: SpeculationParams = SpeculationParams(),  # noqa: B008
    ) -> list[Completion]:
        self.speculation = speculation
        done: dict[int, Completion] = {}
        for place in self.order(len(prompts)):
            time.sleep(self.delay_s)
            self._note(prompts[place], params[place])
            done[place] = self._completion(prompts[place], params[place], place)
            if on_done is not None:
                on_done(place, done[place])
        return [done[place] for place in range(len(prompts))]

    def stream(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        speculation: SpeculationParams = SpeculationParams(),  # noqa: B008
    ) -> FakeStream:
        self.speculation = speculation
        self._note(prompt, params)
        completion = self._completion(prompt, params, 0)
        self.check(prompt, params)
        return FakeStream(self._events(completion), self.prompt_steps, self.delay_s)

    def stream_chat(self, messages: list[dict[str, Any]], params: SamplingParams, speculation: SpeculationParams) -> FakeStream:
        return self.stream(self.render_chat(messages), params, speculation)

    def _note(self, prompt: str | list[int], params: SamplingParams) -> None:
        if self.fail is not None:
            raise self.fail
        self.asked.append(prompt if isinstance(prompt, str) else self.decode(prompt))
        self.params.append(params)

    def _events(self, completion: Completion) -> Generator[StreamEvent, None, None]:
        answer = completion.answers[0]
        try:
            pieces = [self.decode([token]) for token in self._encode(self.thought)] if self.thought else []
            for piece in pieces:
                yield StreamEvent(0, "", [0], ["suffix"], None, [piece], thought=piece, thought_tokens=1)
            for start in range(0, len(answer.tokens), 3):
                tokens, sources = answer.tokens[start : start + 3], answer.provenance[start : start + 3]
                last = start + 3 >= len(answer.tokens)
                pieces = [self.decode([token]) for token in tokens]
                yield StreamEvent(0, self.decode(tokens), tokens, sources, completion if last else None, pieces)
                time.sleep(self.delay_s)
        except GeneratorExit:
            self.cancelled += 1
            raise

    def _completion(self, prompt: str | list[int], params: SamplingParams, place: int) -> Completion:
        words = self._encode(self.reply)
        limit = len(words) if params.max_tokens is None else params.max_tokens
        tokens = list(itertools.islice(itertools.cycle(words), limit)) if params.ignore_eos else words[:limit]
        reason: FinishReason = "stop" if len(tokens) == len(words) else "length"
        sources = [SOURCES[index % len(SOURCES)] for index in range(len(tokens))]
        answers = [Answer(index, self.decode(tokens), tokens, reason, sources) for index in range(params.n)]
        prompt_tokens = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        counts = {"suffix": DraftCount(12, 8), "lm": DraftCount(6, 4)} if self.config.draft != "none" else {}
        return Completion(
            id=f"request-{place}",
            model=self.name,
            precision=self.precision,
            exact=True,
            answers=answers,
            usage=Usage(prompt_tokens, len(tokens) * params.n),
            timing=Timing(0.5, 0.05, 0.4),
            speed=Speed(40.0, 25.0),
            speculation=Speculation(9, by_drafter=counts),
            cut_by=self.cut_by if reason == "length" else None,
        )

    def _encode(self, text: str) -> list[int]:
        """One token a word, with the space before it."""
        out = []
        for piece in text.replace(" ", "\0 ").split("\0"):
            if piece not in self.vocabulary:
                self.vocabulary.append(piece)
            out.append(self.vocabulary.index(piece))
        return out


@dataclass
class Outcome:
    status: int
    out: str
    err: str


class CommandLine:
    """Runs ``hasten`` in this process with the fake model, away from the user's settings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        for name in [name for name in os.environ if name.startswith("HASTEN_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
        self.llm = type("LLMOfThisTest", (FakeLLM,), {"made": []})
        monkeypatch.setitem(hasten.__dict__, "LLM", self.llm)

    def __call__(self, *arguments: str, stdin: str | bytes = "", **environment: str) -> Outcome:
        for name, value in environment.items():
            self.monkeypatch.setenv(name, value)
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii", errors="surrogateescape"))
        self.capsys.readouterr()
        status = run(arguments)
        out, err = self.capsys.readouterr()
        for name in environment:
            self.monkeypatch.delenv(name)
        return Outcome(status, out, err)

    @property
    def made(self) -> FakeLLM:
        """The one model that was loaded."""
        (llm,) = self.llm.made
        return llm


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import hasten
from cli_fakes import FakeLLM
{settings}
hasten.LLM = FakeLLM
from hasten.cli.main import main
main()
"""


def driver(settings: str = "") -> list[str]:
    """A command that is ``hasten`` with the fake model, for tests of signals and pipes."""
    return [sys.executable, "-c", DRIVER.format(tests=str(Path(__file__).parent), settings=settings)]
