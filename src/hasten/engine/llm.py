"""The library's front door: ``LLM``. ``generate`` is built on ``stream``'s loop, and that on ``Engine.step``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from hasten.core.config import EngineConfig
from hasten.core.errors import InvalidRequest
from hasten.core.progress import Progress, silent
from hasten.core.results import Completion, StreamEvent
from hasten.core.types import SamplingParams
from hasten.engine.engine import Engine
from hasten.engine.loading import load_engine
from hasten.engine.requests import Request
from hasten.model.chat import ChatTemplate

Prompt = str | list[int]
Message = Mapping[str, Any]
OnDone = Callable[[int, Completion], None]


class LLM:
    """A model, ready to answer. Not for several threads at once.

    ``LLM("smollm2-135m")``, or ``LLM(EngineConfig(...))``; keyword arguments are the fields of ``EngineConfig``. A catalogue name
    that is not on this machine is downloaded first. ``progress`` hears of downloads and loading.

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
        self.engine: Engine = load_engine(self.config, progress)
        tokenizer = self.engine.tokenizer
        self._template = None if tokenizer.chat_template is None else ChatTemplate.of(tokenizer)

    @property
    def name(self) -> str:
        return self.engine.model

    @property
    def precision(self) -> str:
        return self.engine.executor.decoder.precision.name

    @property
    def context_length(self) -> int:
        """Positions that prompt and answer may take together (the model's context, or the pool where that is smaller)."""
        return self.engine.scheduler.capacity

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tenant: str = "",
        on_done: OnDone | None = None,
    ) -> list[Completion]:
        """Answer all prompts (texts, or lists of token ids) together; results stand in the order of the prompts.

        ``params`` holds for all, or is one a prompt. ``on_done(place, completion)`` is called as each finishes.
        Raises InvalidRequest before anything runs when one of them can never be served.
        """
        several = [prompts] if isinstance(prompts, str) or _is_tokens(prompts) else list(prompts)
        each = self._params(params, len(several))
        requests = self._submit_all([self.encode(prompt) for prompt in several], each, tenant)  # type: ignore[arg-type]
        places = {id(request): place for place, request in enumerate(requests)}
        done: dict[int, Completion] = {}
        for request, event in self._run(requests):
            if event.completion is not None:
                place = places[id(request)]
                done[place] = event.completion
                if on_done is not None:
                    on_done(place, event.completion)
        return [done[place] for place in range(len(requests))]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, tenant: str = "") -> Iterator[StreamEvent]:
        """Answer one prompt piece by piece; the last event carries the ``completion``. Closing the iterator cancels the request.

        The request is checked and queued when this is called, not when the first piece is asked for.
        """
        requests = self._submit_all([self.encode(prompt)], [params or SamplingParams()], tenant)
        return (event for _, event in self._run(requests))

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, *, tenant: str = "") -> Completion:
        """Answer a conversation: messages of ``role`` and ``content``, through the model's own template."""
        return self.generate([self.render_chat(messages)], params, tenant=tenant)[0]

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, *, tenant: str = ""
    ) -> Iterator[StreamEvent]:
        """``chat``, piece by piece."""
        return self.stream(self.render_chat(messages), params, tenant=tenant)

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the model's turn. Raises InvalidRequest when the model has no template."""
        if self._template is None:
            raise InvalidRequest(f"'{self.name}' has no chat template; give it a plain prompt (--raw on the command line).")
        text = self._template.render(messages, add_generation_prompt=True)
        return self.engine.tokenizer.encode(text, add_bos=False)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a plain prompt; a list of ids is taken as it is."""
        if isinstance(prompt, str):
            return self.engine.tokenizer.encode(prompt, add_bos=True)
        return list(prompt)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without special ones."""
        return self.engine.tokenizer.decode(tokens)

    def close(self) -> None:
        """Cancel what runs and let the model's memory go."""
        self._cancel_all()
        self.engine.executor.pool.keys = self.engine.executor.pool.keys[:0]
        self.engine.executor.pool.values = self.engine.executor.pool.values[:0]

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

    def _submit_all(self, prompts: list[list[int]], params: list[SamplingParams], tenant: str) -> list[Request]:
        requests: list[Request] = []
        try:
            for prompt, own in zip(prompts, params, strict=True):
                requests.append(self.engine.submit(prompt, own, tenant))
        except BaseException:
            for request in requests:
                self.engine.cancel(request)
            raise
        return requests

    def _run(self, requests: list[Request]) -> Iterator[tuple[Request, StreamEvent]]:
        """Step until these requests are finished; whoever stops listening cancels what is left of them."""
        try:
            while not all(request.finished for request in requests):
                for request, event in self.engine.step():
                    if any(request is own for own in requests):
                        yield request, event
        finally:
            for request in requests:
                self.engine.cancel(request)

    def _cancel_all(self) -> None:
        self.engine.cancel_all()


def _is_tokens(prompts: object) -> bool:
    return isinstance(prompts, list) and bool(prompts) and all(isinstance(token, int) for token in prompts)
