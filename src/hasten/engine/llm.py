"""The library's front door: ``LLM``. ``generate`` is built on ``stream``'s loop, and that on ``Engine.step``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

from hasten.core.config import EngineConfig, SpeculationParams
from hasten.core.errors import HastenError, InvalidRequest
from hasten.core.progress import Progress, silent
from hasten.core.results import Completion, StreamEvent
from hasten.core.types import SamplingParams
from hasten.engine.drafting import AUTO
from hasten.engine.engine import Engine
from hasten.engine.interrupts import interrupts_held_back
from hasten.engine.loading import load_engine
from hasten.engine.requests import Request
from hasten.model.chat_prompt import ChatPrompts
from hasten.model.thinking import Thinking, thinking_of

Prompt = str | list[int]
Message = Mapping[str, Any]
OnDone = Callable[[int, Completion], None]


class LLM:
    """A model, ready to answer. Not for several threads at once.

    ``LLM("smollm2-135m")``, or ``LLM(EngineConfig(...))``; keyword arguments are the fields of ``EngineConfig``. A catalogue name
    that is not on this machine is downloaded first. ``progress`` hears of downloads and loading. ``thinking`` is how the model
    thinks in chats before it answers, None where it does not.

        with LLM("smollm2-135m") as llm:
            print(llm.generate("Once upon a time", SamplingParams(max_tokens=32))[0].text)
    """

    def __init__(self, model: str | EngineConfig = "smollm2-135m", *, progress: Progress = silent, **settings: Any) -> None:
        if isinstance(model, EngineConfig):
            if settings:
                raise InvalidRequest("Give settings either as an EngineConfig or as keyword arguments, not both.")
            self.config = model
        else:
            self.config = EngineConfig.from_mapping({"model": model, **settings})
        self._closed = False
        self.engine: Engine = load_engine(self.config, progress)
        tokenizer = self.engine.tokenizer
        self._chats = None if tokenizer.chat_template is None else ChatPrompts(tokenizer)
        self.thinking = None if self._chats is None else thinking_of(tokenizer)

    @property
    def name(self) -> str:
        return self.engine.model

    @property
    def precision(self) -> str:
        return self.engine.executor.precision

    @property
    def context_length(self) -> int:
        """Positions that prompt and answer may take together (the model's context, or the pool where that is smaller)."""
        return self.engine.scheduler.capacity

    @property
    def has_chat_template(self) -> bool:
        return self._chats is not None

    @property
    def chat_template(self) -> str | None:
        """The template's source, None where the model has none."""
        return self.engine.tokenizer.chat_template

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tenant: str = "",
        on_done: OnDone | None = None,
        prediction: Prompt | None = None,
        speculation: SpeculationParams = AUTO,
        thinking: Thinking | None = None,
    ) -> list[Completion]:
        """Answer all prompts (texts, or lists of token ids) together; results stand in the order of the prompts.

        ``params`` holds for all, or is one a prompt. ``prediction`` is a text that the answers are expected to be close to; the
        prediction drafter drafts along it. ``speculation`` says whether and how much to draft for them. ``thinking`` (the model's
        own ``thinking``) tells its thoughts apart, as chats do; else they are text. ``on_done(place, completion)`` is called as
        each finishes.
        Raises InvalidRequest before anything runs when one of them can never be served. What ends one of them later on (logits
        that cannot be used) is raised too, and the others are cancelled.
        """
        several = _several(prompts)
        each = self._params(params, len(several))
        requests = self._submit_all([self.encode(prompt) for prompt in several], each, tenant, prediction, speculation, thinking)
        places = {request.id: place for place, request in enumerate(requests)}
        done: dict[int, Completion] = {}
        try:
            while len(done) < len(requests):
                told = self.engine.step()
                for request in told or requests:  # nobody is told of what was cancelled elsewhere
                    place = places.get(request.id)
                    if place is None:
                        continue
                    while request.inbox:
                        completion = request.inbox.popleft().completion
                        if completion is not None:
                            done[place] = completion
                            if on_done is not None:
                                on_done(place, completion)
                    if request.finished and place not in done:
                        raise request.problem or HastenError("A prompt was cancelled; close the model when all are answered.")
        finally:
            self._cancel_all(requests)
        return [done[place] for place in range(len(requests))]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tenant: str = "",
        prediction: Prompt | None = None,
        speculation: SpeculationParams = AUTO,
        thinking: Thinking | None = None,
    ) -> EventStream:
        """Answer one prompt piece by piece; the last event carries the ``completion``.

        The request is checked and queued when this is called. Several streams may be open at once and read in turns. Closing
        one, or letting go of it, cancels its request. What ends the request early (logits that cannot be used) is raised after
        the last event before it.
        """
        requests = self._submit_all([self.encode(prompt)], [params or SamplingParams()], tenant, prediction, speculation, thinking)
        return EventStream(self.engine, requests[0])

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tenant: str = "",
        prediction: Prompt | None = None,
        speculation: SpeculationParams = AUTO,
    ) -> Completion:
        """Answer a conversation: messages of ``role`` and ``content``, through the model's own template. What a model thinks first
        is the completion's ``thought``."""
        prompt = self.render_chat(messages)
        return self.generate(
            [prompt], params, tenant=tenant, prediction=prediction, speculation=speculation, thinking=self.thinking
        )[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tenant: str = "",
        prediction: Prompt | None = None,
        speculation: SpeculationParams = AUTO,
    ) -> EventStream:
        """``chat``, piece by piece."""
        prompt = self.render_chat(messages)
        return self.stream(prompt, params, tenant=tenant, prediction=prediction, speculation=speculation, thinking=self.thinking)

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        unfinished: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, ready for the model's turn; ``tools`` are functions that the model may call, as OpenAI
        writes them, ``extra`` further names for the template. ``unfinished``: the last message, whose content is a text, is the
        model's own, and the model writes on where it ends. What spells a control token anywhere in these is ordinary text: only
        the template writes control tokens. Safe from any thread.

        Raises InvalidRequest when the model has no template, or it refuses these.
        """
        if self._chats is None:
            raise InvalidRequest(f"'{self.name}' has no chat template; give it a plain prompt (--raw on the command line).")
        return self._chats.tokens(messages, tools, extra, unfinished)

    def check(self, prompt: Prompt, params: SamplingParams) -> None:
        """Raise what ``generate`` would raise for this prompt before anything runs: InvalidRequest or PromptTooLong."""
        self.engine.check(self.encode(prompt), params, [])

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a plain prompt; a list of ids is taken as it is."""
        if isinstance(prompt, str):
            return self.engine.tokenizer.encode(prompt, add_bos=True)
        return list(prompt)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without special ones."""
        return self.engine.tokenizer.decode(tokens)

    def close(self) -> None:
        """Cancel what runs, and let go of the memory of keys and values and of all that drafts. The weights go with the last
        reference to this object. A second time it does nothing."""
        self._closed = True
        self.engine.cancel_all()
        self.engine.drafting.drafters.clear()
        self.engine.executor.release()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _params(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if len(params) != count:
            raise InvalidRequest(f"There are {count} prompts but {len(params)} sampling parameters; give one for all, or one each.")
        return list(params)

    def _submit_all(
        self,
        prompts: list[list[int]],
        params: list[SamplingParams],
        tenant: str,
        prediction: Prompt | None,
        speculation: SpeculationParams,
        thinking: Thinking | None,
    ) -> list[Request]:
        if self._closed:
            raise HastenError("This model is closed; make another LLM.")
        requests: list[Request] = []
        if isinstance(prediction, str):
            prediction = self.engine.tokenizer.encode(prediction, add_bos=False)
        try:
            with interrupts_held_back():
                for prompt, own in zip(prompts, params, strict=True):
                    requests.append(
                        self.engine.submit(prompt, own, tenant, speculation=speculation, prediction=prediction, thinking=thinking)
                    )
        except BaseException:
            self._cancel_all(requests)
            raise
        return requests

    def _cancel_all(self, requests: list[Request]) -> None:
        with interrupts_held_back():
            for request in requests:
                self.engine.cancel(request)


class EventStream(Iterator[StreamEvent]):
    """The events of one request, stepping its engine as they are asked for."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine = engine
        self._request = request

    def step(self) -> bool:
        """Run one step of the engine where the next event, or the end, needs one; whether it is there now. For whoever wants to
        look up between the steps that read a long prompt."""
        if not (self._request.inbox or self._request.finished):
            self._engine.step()
        return bool(self._request.inbox or self._request.finished)

    def __next__(self) -> StreamEvent:
        while not self.step():
            pass
        if not self._request.inbox:
            raise self._request.problem or StopIteration
        return self._request.inbox.popleft()

    def close(self) -> None:
        """Cancel what is left of the request; its blocks are free at once."""
        self._engine.cancel(self._request)

    def __del__(self) -> None:
        self._engine.let_go(self._request)


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, a text or a list of token ids, or several of them, as a list of prompts."""
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if listed and all(isinstance(token, int) for token in listed):
        return [cast("list[int]", listed)]
    return cast("list[Prompt]", listed)
