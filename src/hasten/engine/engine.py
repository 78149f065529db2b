"""The engine: requests in, tokens out, one ``step`` at a time. Threads take turns; a server puts a queue in front of it."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from hasten.control.controller import Controller
from hasten.control.profile import Profile
from hasten.core.config import SpeculationParams
from hasten.core.errors import InvalidRequest
from hasten.core.results import Completion
from hasten.core.types import Batch, FinishReason, SamplingParams, Sequence, Verdict
from hasten.engine.drafting import AUTO, Drafting
from hasten.engine.interrupts import interrupts_held_back, interrupts_let_through
from hasten.engine.requests import AnswerState, Request, provenance_of
from hasten.engine.scheduler import Scheduled, Scheduler
from hasten.engine.text import TextStream
from hasten.engine.thought import AfterThought, Thought, place_of
from hasten.model.executor import Executor
from hasten.model.thinking import Place, Thinking
from hasten.model.tokenizer import Tokenizer
from hasten.sampling.choose import leaders_needed
from hasten.sampling.constraint import Constraint
from hasten.sampling.filters import History
from hasten.sampling.noise import derive_seed, fresh_seed
from hasten.sampling.rules import rule_for, verify

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Engine:
    """``eos`` are the token ids that end an answer; ``vocabulary`` how many ids may be chosen (a model's table may be padded).

    One thread at a time is within: the others wait. Who reads a request while others may step takes the ``turn``; ``steps`` tells
    whether they did."""

    executor: Executor
    scheduler: Scheduler
    drafting: Drafting
    controller: Controller
    tokenizer: Tokenizer
    eos: frozenset[int]
    vocabulary: int
    max_rows: int
    model: str
    load_seconds: float = 0.0
    explain: bool = False
    profiles: dict[str, Profile] = field(default_factory=dict)  # cost curves by whose they are: "target", or a drafter's name
    turn: threading.RLock = field(default_factory=threading.RLock)
    steps: int = 0  # that have ended
    _stepping: bool = False
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _requests: dict[int, Request] = field(default_factory=dict)  # by sequence id
    _let_go: deque[Request] = field(default_factory=deque)  # to be cancelled before anything else happens

    def submit(
        self,
        prompt: list[int],
        params: SamplingParams,
        tenant: str = "",
        request_id: str | None = None,
        speculation: SpeculationParams = AUTO,
        prediction: list[int] | None = None,
        constraint: Callable[[], Constraint] | None = None,
        thinking: Thinking | None = None,
    ) -> Request:
        """Queue a request. ``prediction`` is what the caller expects the answers to be; it never changes them. ``constraint``
        makes, for each answer, what says which tokens are allowed. ``thinking`` tells what the model thinks apart from what it
        answers; stop strings and constraints are the answer's then.

        Raises InvalidRequest or PromptTooLong, one sentence, when the request can never be served, and what ``constraint`` raises.
        """
        with self.turn:
            self._cancel_what_was_let_go()
            self.check(prompt, params, prediction or [], constraint is not None)
            seed = fresh_seed() if params.seed is None else params.seed
            limit = self.scheduler.capacity
            if params.max_tokens is not None:
                limit = min(limit, len(prompt) + params.max_tokens)
            first = next(self._ids)
            name = request_id or f"request-{first}"
            sequences = [
                Sequence(
                    id=first if index == 0 else next(self._ids),
                    request_id=name,
                    params=params,
                    seed=derive_seed(seed, index),
                    tokens=list(prompt),
                    prompt_length=len(prompt),
                    length_limit=limit,
                    tenant=tenant,
                    index=index,
                    prediction=list(prediction or ()),
                )
                for index in range(params.n)
            ]
            rule = rule_for(self.drafting.rule_for(speculation), params)
            place = place_of(thinking, prompt, constraint is not None) if thinking is not None else None
            answers = [self._answer(sequence, constraint and constraint(), thinking, place) for sequence in sequences]
            ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos)
            request = Request(name, answers, rule, ends, speculation)
            for sequence in sequences:
                sequence.leaders, sequence.draw = leaders_needed(params, sequence.seed, rule, constraint is not None)
                sequence.laws = rule != "coupled"
                self._requests[sequence.id] = request
            self.scheduler.add(sequences)
            return request

    def check(self, prompt: list[int], params: SamplingParams, prediction: list[int], constrained: bool = False) -> None:
        """Raise InvalidRequest or PromptTooLong when the request can never be served. Changes nothing; safe from any thread."""
        self._check_prompt(prompt, params)
        self._check_prediction(prediction)
        self.scheduler.check_length(len(prompt))
        if constrained and params.ignore_eos:
            raise InvalidRequest("ignore_eos cannot be combined with a constraint on the output, which has an end; leave one out.")

    def step(self) -> list[Request]:
        """Run one forward pass over whatever is ready. What became final lies in the inboxes of the requests returned. An idle
        engine does nothing.

        A request whose own rows cannot be used (damaged logits, a constraint that leaves nothing) ends with ``problem``; the
        others go on. Raises what the forward pass raises; ``fail`` then ends whatever was running.
        """
        with self.turn, interrupts_held_back():
            self._cancel_what_was_let_go()
            self._stepping = True
            try:
                return self._step()
            finally:
                self._stepping = False
                self.steps += 1

    def _step(self) -> list[Request]:
        begun = time.perf_counter()
        items = self.scheduler.plan()
        self._start(items)
        self.drafting.propose(items, self.max_rows - sum(item.chain for item in items), len(self.scheduler.running))
        packed = self.scheduler.pack(items)
        if not packed.items:
            return []
        self.executor.copy_blocks(packed.copies)
        batch = Batch([item.segment() for item in packed.items], self.drafting.likeliest_wanted)
        started = time.perf_counter()
        with interrupts_let_through():
            logits = self.executor.forward(batch)
        forward = time.perf_counter() - started
        self.drafting.show(logits, self.executor.likeliest)
        told: list[Request] = []
        row, plain = 0, self._plain_shares(packed.items)
        for item, segment in zip(packed.items, batch.segments, strict=True):
            wanted = segment.rows - segment.first_logit
            if item.sequence.finished:  # a sibling failed in this step and took the request with it
                pass
            elif item.completes:
                rows = slice(row, row + wanted)
                states = None if self.executor.states is None else self.executor.states[rows]
                told.append(self._advance_or_fail(item, logits[rows], states, plain.get(item.sequence.id)))
            else:
                self.scheduler.committed(item, 0)
            row += wanted
        self.drafting.settle(packed.items, batch.rows, forward, time.perf_counter() - begun)
        return told

    @interrupts_held_back()
    def cancel(self, request: Request) -> None:
        """End every unfinished answer of a request; its blocks are free at once. Within a step, or while another thread is within,
        that is left to whoever comes next, so that it waits for nobody: the garbage collector may ask for it at any time."""
        if self._stepping or not self.turn.acquire(blocking=False):
            self.let_go(request)
            return
        try:
            self._end(request, "cancelled")
        finally:
            self.turn.release()

    def let_go(self, request: Request) -> None:
        """``cancel`` before anything else happens. For finalisers, which Python runs at any time, also within a step."""
        self._let_go.append(request)

    def fail(self, problem: Exception) -> list[Request]:
        """After ``step`` has raised: end every request that runs; returns them. Those that wait have seen nothing of it."""
        with self.turn, interrupts_held_back():
            failed = _distinct(request for s in self.scheduler.running if (request := self._requests.get(s.id)))
            for request in failed:
                request.problem = problem
                self._end(request, "error")
            return failed

    def cancel_all(self) -> None:
        with self.turn, interrupts_held_back():
            for request in _distinct(self._requests.values()):
                self._end(request, "cancelled")

    @property
    def idle(self) -> bool:
        with self.turn:
            self._cancel_what_was_let_go()
            return self.scheduler.idle

    def _answer(
        self, sequence: Sequence, constraint: Constraint | None, thinking: Thinking | None, place: Place | None
    ) -> AnswerState:
        history = History(sequence.tokens) if sequence.params.needs_history else None
        thoughts = None
        if thinking is not None and place is not None:
            thoughts = Thought(thinking, place, exact=constraint is not None)
            constraint = constraint and AfterThought(constraint, thinking, place, self.vocabulary, self.eos)
        stream = TextStream(self.tokenizer, sequence.params.stop, thoughts=thoughts)
        return AnswerState(sequence, stream, history, constraint)

    def _cancel_what_was_let_go(self) -> None:
        while self._let_go:
            with interrupts_held_back():
                self._end(self._let_go.popleft(), "cancelled")

    def _end(self, request: Request, reason: FinishReason) -> None:
        for answer in request.answers:
            sequence = answer.sequence
            if not sequence.finished:
                sequence.finish_reason = reason
            if sequence.id in self._requests:  # also one that had just ended when something went wrong
                self._leave(sequence)

    def _advance_or_fail(self, item: Scheduled, logits: Tensor, states: Tensor | None, plain: float | None) -> Request:
        request = self._requests[item.sequence.id]
        try:
            self._advance(request, item, logits, states, plain)
        except Exception as problem:
            log.warning("Request %s ended with an error (%s).", request.id, type(problem).__name__)
            request.problem = problem
            self._end(request, "error")
        return request

    def _advance(self, request: Request, item: Scheduled, logits: Tensor, states: Tensor | None, plain: float | None) -> None:
        """Verify one sequence's tree, keep what was accepted, and report it. ``logits`` [1 + nodes, vocabulary]: root first; so are
        ``states`` [1 + nodes, hidden], where they are kept; ``plain`` is its share of what a plain step would have taken, None
        where that is not measured."""
        sequence, tree = item.sequence, item.tree
        answer = request.answers[sequence.index]
        verdict = verify(
            request.verify,
            tree,
            self.drafting.laws_of(sequence),
            logits,
            sequence.params,
            sequence.seed,
            position=len(sequence.tokens),
            history=answer.history,
            limit=sequence.tokens_left,
            stop_tokens=request.stop_tokens,
            allowed_after=answer.constraint.allowed_after if answer.constraint is not None else None,
            vocabulary_size=self.vocabulary,
        )
        first_round = sequence.output_length == 0
        emitted = self._append(request, sequence, verdict, provenance_of(tree, verdict.path, len(verdict.tokens)))
        accepted = verdict.path[:emitted]
        chain = item.chain
        self.executor.commit(sequence.blocks, sequence.computed, [*range(chain), *(chain + node for node in accepted)])
        self.scheduler.committed(item, len(accepted))
        if not first_round:
            request.account(tree, accepted)
        request.clock(emitted, plain, self.drafting.spent, self.drafting.drafted)
        self.drafting.observe(sequence, tree, verdict, logits, states)
        if sequence.finished:
            self._leave(sequence)
        request.tell(answer, self._completion(request) if request.finished else None)

    def _append(self, request: Request, sequence: Sequence, verdict: Verdict, provenance: list[str]) -> int:
        """Add the verdict's tokens one by one until the answer ends; returns how many were added."""
        answer = request.answers[sequence.index]
        pieces: list[str] = []
        thoughts: list[str] = []
        for count, token in enumerate(verdict.tokens, start=1):
            sequence.tokens.append(token)
            sequence.provenance.append(provenance[count - 1])
            if verdict.logprobs:
                sequence.logprobs.append(verdict.logprobs[count - 1])
            ends = token in request.stop_tokens
            text = thought = ""
            if not ends:
                text, ends = answer.stream.push(token)
                thought = answer.stream.thought
            pieces.append(text)
            thoughts.append(thought)
            if ends:
                sequence.finish_reason = "stop"
            elif sequence.tokens_left <= 0:
                sequence.finish_reason = "length"
            if sequence.finished:
                pieces[-1] += answer.stream.finish()
                thoughts[-1] += answer.stream.thought
                if answer.stream.stopped:
                    sequence.finish_reason = "stop"
                break
        answer.fresh += pieces
        answer.fresh_thought += thoughts
        answer.text += "".join(pieces)
        answer.thought += "".join(thoughts)
        if answer.history is not None:
            answer.history.extend(verdict.tokens[:count])
        if answer.constraint is not None and not sequence.finished:
            answer.constraint.accept(verdict.tokens[:count])
        return count

    def _leave(self, sequence: Sequence) -> None:
        request = self._requests.pop(sequence.id)
        self.scheduler.remove(sequence)
        if self.explain:
            request.speculation.decisions.update(self.drafting.decisions(sequence))
        self.drafting.end(sequence)

    def _completion(self, request: Request) -> Completion:
        executor, bound = self.executor, self.scheduler.bound
        drafting = bool(self.drafting.drafters)
        return request.completion(self.model, executor.precision, executor.exact, self.load_seconds, drafting, bound)

    def _plain_shares(self, items: list[Scheduled]) -> dict[int, float]:
        """By sequence id: seconds that a plain step of what is decoding now would take, over the answers of its request that get
        a token from it. Empty where costs are not measured."""
        if not self.controller.measured:
            return {}
        contexts = [len(sequence.tokens) for sequence in self.scheduler.running if sequence.output_length > 0]
        plain = self.controller.costs.plain_seconds(contexts or 1)
        answering = [item.sequence.id for item in items if item.completes]
        if len(answering) == 1:
            return {answering[0]: plain}
        together = Counter(id(self._requests[sequence]) for sequence in answering)
        return {sequence: plain / together[id(self._requests[sequence])] for sequence in answering}

    def _start(self, items: list[Scheduled]) -> None:
        """Clocks and drafters begin with those whose turn has come for the first time."""
        now = time.perf_counter()
        for item in items:
            request = self._requests[item.sequence.id]
            if request.started is None:
                request.started = now
            if not self.drafting.begun(item.sequence):
                self.drafting.begin(item.sequence, request.speculate)

    def _check_prediction(self, prediction: list[int]) -> None:
        most = self.scheduler.capacity
        if len(prediction) > most:
            raise InvalidRequest(f"The prediction has {len(prediction)} tokens and the context only {most}; give a shorter one.")
        for token in prediction:
            if not 0 <= token < self.vocabulary:
                raise InvalidRequest(f"The prediction holds token id {token}; this model's ids go from 0 to {self.vocabulary - 1}.")

    def _check_prompt(self, prompt: list[int], params: SamplingParams) -> None:
        if not prompt:
            raise InvalidRequest("The prompt is empty; give at least one token.")
        for token in prompt:
            if not 0 <= token < self.vocabulary:
                raise InvalidRequest(f"The prompt holds token id {token}; this model's ids go from 0 to {self.vocabulary - 1}.")
        for token in (*params.logit_bias, *params.stop_token_ids):
            if token >= self.vocabulary:
                raise InvalidRequest(f"Token id {token} is not in the vocabulary; this model's ids go up to {self.vocabulary - 1}.")


def _distinct(requests: Iterable[Request]) -> list[Request]:
    """Each of them once, in their order."""
    return list({id(request): request for request in requests}.values())
