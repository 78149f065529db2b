"""The library's front door: ``LLM``. ``generate`` is built on ``stream``'s loop, and that on ``Engine.step``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

from hasten.core.config import EngineConfig, SpeculationParams
from hasten.core.errors import HastenError, InvalidRequest
from hasten.core.progress import Progress, silent
from hasten.core.results import Completion, StreamEvent
from hasten.core.types import SamplingParams
from hasten.engine.arguments import Prompt, TokenIds, check_wishes, form_of, ids_of, one_params, params_of, prompt_of, prompts_of
from hasten.engine.drafting import AUTO
from hasten.engine.engine import Engine
from hasten.engine.grammar import Form, Grammars
from hasten.engine.interrupts import interrupts_held_back
from hasten.engine.loading import load_engine
from hasten.engine.requests import Request
from hasten.model.chat_prompt import ChatPrompts
from hasten.model.thinking import Thinking, thinking_of

Message = Mapping[str, Any]
OnDone = Callable[[int, Completion], None]


class LLM:
    """A model, ready to answer. Threads may share it: they take turns, a step of the engine at a time.

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
        self._grammars: Grammars | None = None  # made with the first form

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, precision={self.precision!r}{', closed' if self._closed else ''})"

    def __reduce__(self) -> NoReturn:
        raise HastenError("A loaded model cannot be pickled or copied; send its config, and make another LLM of that.")

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
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | Iterable[SamplingParams] | None = None,
        *,
        tenant: str = "",
        on_done: OnDone | None = None,
        prediction: Prompt | None = None,
        speculation: SpeculationParams = AUTO,
        thinking: Thinking | None = None,
        form: Form | Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """Answer all prompts (texts, or token ids as lists or arrays) together; results stand in the order of the prompts.

        ``params`` holds for all, or is one a prompt. ``prediction`` is a text that the answers are expected to be close to; the
        prediction drafter drafts along it. ``speculation`` says whether and how much to draft for them. ``thinking`` (the model's
        own ``thinking``) tells its thoughts apart, as chats do; else they are text. ``form`` is what answers have to look like: a
        JSON schema as a dict, or a ``Form``; an answer that is cut short is the beginning of one.
        ``on_done(place, completion)`` is called as each finishes.
        Raises InvalidRequest before anything runs when one of them can never be served. What ends one of them later on (logits
        that cannot be used) is raised too, and the others are cancelled.
        """
        several = prompts_of(prompts)
        each = params_of(params, len(several))
        requests = self._submit_all(several, each, tenant, prediction, speculation, thinking, form)
        done: dict[int, Completion] = {}
        try:
            for place, end in self._ends(requests):
                if isinstance(end, Exception):
                    raise end
                done[place] = end
                if on_done is not None:
                    on_done(place, end)
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
        form: Form | Mapping[str, Any] | None = None,
    ) -> EventStream:
        """Answer one prompt piece by piece; the last event carries the ``completion``.

        The request is checked and queued when this is called. Several streams may be open at once and read in turns. Closing
        one, or letting go of it, cancels its request. What ends the request early (logits that cannot be used) is raised after
        the last event before it.
        """
        own = one_params(params)
        requests = self._submit_all([prompt_of(prompt)], [own], tenant, prediction, speculation, thinking, form)
        return EventStream(self.engine, requests[0])

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tenant: str = "",
        prediction: Prompt | None = None,
        speculation: SpeculationParams = AUTO,
        form: Form | Mapping[str, Any] | None = None,
    ) -> Completion:
        """Answer a conversation: messages of ``role`` and ``content``, through the model's own template. What a model thinks first
        is the completion's ``thought``, and has no form."""
        prompt = self.render_chat(messages)
        return self.generate(
            [prompt],
            one_params(params),
            tenant=tenant,
            prediction=prediction,
            speculation=speculation,
            thinking=self.thinking,
            form=form,
        )[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tenant: str = "",
        prediction: Prompt | None = None,
        speculation: SpeculationParams = AUTO,
        form: Form | Mapping[str, Any] | None = None,
    ) -> EventStream:
        """``chat``, piece by piece."""
        prompt = self.render_chat(messages)
        return self.stream(
            prompt, params, tenant=tenant, prediction=prediction, speculation=speculation, thinking=self.thinking, form=form
        )

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

    def check(self, prompt: Prompt, params: SamplingParams | None = None) -> None:
        """Raise what ``generate`` would raise for this prompt before anything runs: InvalidRequest or PromptTooLong."""
        self.engine.check(self.encode(prompt), one_params(params), [])

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a plain prompt; ids are taken as they are."""
        given = prompt_of(prompt)
        return self.engine.tokenizer.encode(given, add_bos=True) if isinstance(given, str) else given

    def decode(self, tokens: TokenIds) -> str:
        """The text of tokens, without special ones. Raises InvalidRequest when the model has no such tokens."""
        ids, last = ids_of(tokens, "tokens"), self.engine.vocabulary - 1
        for token in ids:
            if not 0 <= token <= last:
                raise InvalidRequest(f"There is no token id {token}; this model's ids go from 0 to {last}.")
        return self.engine.tokenizer.decode(ids)

    def close(self) -> None:
        """Cancel what runs, and let go of the memory of keys and values and of all that drafts. The weights go with the last
        reference to this object. A second time it does nothing."""
        with self.engine.turn:
            self._closed = True
            self.engine.cancel_all()
            self.engine.drafting.drafters.clear()
            self.engine.executor.release()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _submit_all(
        self,
        prompts: list[str | list[int]],
        params: list[SamplingParams],
        tenant: str,
        prediction: Prompt | None,
        speculation: SpeculationParams,
        thinking: Thinking | None,
        form: Form | Mapping[str, Any] | None,
    ) -> list[Request]:
        """A request for each prompt, or none of them. Raises InvalidRequest, also for the wishes that hold for all."""
        check_wishes(tenant, speculation, thinking)
        expected = None if prediction is None else prompt_of(prediction, "prediction")
        if isinstance(expected, str):
            expected = self.engine.tokenizer.encode(expected, add_bos=False)
        tokens = [self.encode(prompt) for prompt in prompts]
        constraint = None if form is None else self._compiler().compile(form_of(form), tenant)
        requests: list[Request] = []
        try:
            with self.engine.turn, interrupts_held_back():
                if self._closed:
                    raise HastenError("This model is closed; make another LLM.")
                for prompt, own in zip(tokens, params, strict=True):
                    requests.append(
                        self.engine.submit(
                            prompt,
                            own,
                            tenant,
                            speculation=speculation,
                            prediction=expected,
                            constraint=constraint,
                            thinking=thinking,
                        )
                    )
        except BaseException:
            self._cancel_all(requests)
            raise
        return requests

    def _compiler(self) -> Grammars:
        if self._grammars is None:
            self._grammars = Grammars(self.engine.tokenizer, self.engine.vocabulary)
        return self._grammars

    def _ends(self, requests: list[Request]) -> Iterator[tuple[int, Completion | Exception]]:
        """Step until all are over. Of each its place, and its completion or what ended it early, as soon as that is known."""
        waiting = {request.id: (place, request) for place, request in enumerate(requests)}
        steps = -1
        while waiting:
            with self.engine.turn:
                told = self.engine.step()
                steps += 1
                # Nobody is told of what was cancelled elsewhere, or came in a step that another thread took, or the caller.
                if not told or steps != self.engine.steps:
                    told, steps = [request for _, request in waiting.values()], self.engine.steps
                ends = _ended(told, waiting)
            yield from ends

    def _cancel_all(self, requests: list[Request]) -> None:
        with interrupts_held_back():
            for request in requests:
                self.engine.cancel(request)


class EventStream(Iterator[StreamEvent]):
    """The events of one request, stepping its engine as they are asked for. In ``with`` it is closed at the end."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine = engine
        self._request = request

    def __repr__(self) -> str:
        return f"EventStream({self._request.id!r}, {'finished' if self._request.finished else 'running'})"

    def __reduce__(self) -> NoReturn:
        raise HastenError("A stream cannot be pickled or copied; send its events.")

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def step(self) -> bool:
        """Run one step of the engine where the next event, or the end, needs one; whether it is there now. For whoever wants to
        look up between the steps that read a long prompt."""
        if self._request.inbox:
            return True
        with self._engine.turn:
            if not (self._request.inbox or self._request.finished):
                self._engine.step()
            return bool(self._request.inbox or self._request.finished)

    def __next__(self) -> StreamEvent:
        inbox = self._request.inbox
        while not inbox:
            with self._engine.turn:
                if self.step() and not inbox:
                    raise self._request.problem or StopIteration
        # Python hears of signals at calls only: whoever interrupts between these lines, of which none is one, loses no event.
        event = inbox[0]
        del inbox[0]
        return event

    def close(self) -> None:
        """Cancel what is left of the request; its blocks are free before anything else happens."""
        self._engine.cancel(self._request)

    def __del__(self) -> None:
        self._engine.let_go(self._request)


def _ended(told: list[Request], waiting: dict[str, tuple[int, Request]]) -> list[tuple[int, Completion | Exception]]:
    """Take the events of the ``waiting`` among these requests, and those that are over out of ``waiting``: places and ends."""
    ends: list[tuple[int, Completion | Exception]] = []
    for request in told:
        if request.id not in waiting:
            continue
        end: Completion | Exception | None = None
        while request.inbox:
            end = request.inbox.popleft().completion
        if end is None and request.finished:
            end = request.problem or HastenError("A prompt was cancelled; close the model when all are answered.")
        if end is not None:
            ends.append((waiting.pop(request.id)[0], end))
    return ends
