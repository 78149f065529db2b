"""The ends of an answer, and the account of a request, when many tokens arrive at once."""

from __future__ import annotations

import time
from collections.abc import Sequence as Row
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drafters import Right
from hasten.cache.blocks import BlockManager
from hasten.core.config import SpeculationParams
from hasten.core.errors import InvalidRequest, ModelError, PromptTooLong
from hasten.core.results import Completion, StreamEvent
from hasten.core.types import MODEL_SOURCE, ROOT, Batch, DraftTree, SamplingParams, Sequence, Verdict
from hasten.draft.base import DraftBudget
from hasten.draft.suffix import SuffixDrafter
from hasten.engine.bids import sound
from hasten.engine.engine import Engine
from hasten.engine.requests import Request
from hasten.engine.scheduler import Scheduler
from hasten.model.precision import BF16, FP32, INT8, Precision
from hasten.native.loader import load
from hasten.sampling.constraint import Constraint
from test_exact import GREEDY, SAMPLED, answers, prompt_of
from tiny import LETTERS, VOCABULARY, FrozenCurve, LetterTokenizer, damage_logits, naive_text, run_all, tiny_engine

KIND = "qwen2"
PROMPT = prompt_of(30, 77)


def run(engine: Engine, request: Request) -> tuple[list[StreamEvent], Completion]:
    while not engine.idle:
        engine.step()
        engine.scheduler.check_integrity()
    events = list(request.inbox)
    completion = events[-1].completion
    assert completion is not None
    return events, completion


def completion_of(params: SamplingParams, drafting: bool, prompt: tuple[int, ...] = PROMPT) -> Completion:
    plain = lambda sequence: naive_text(KIND, prompt, replace(GREEDY, max_tokens=60))  # noqa: E731
    engine = tiny_engine(KIND, [Right(plain)] if drafting else [])
    events, completion = run(engine, engine.submit(list(prompt), params))
    assert "".join(event.text for event in events) == completion.text
    assert [token for event in events for token in event.tokens] == completion.tokens
    assert [name for event in events for name in event.provenance] == completion.answers[0].provenance
    assert len(completion.answers[0].provenance) == len(completion.tokens) == completion.usage.completion_tokens
    return completion


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_max_tokens_is_met_exactly(max_tokens: int) -> None:
    params = replace(GREEDY, max_tokens=max_tokens)
    completion = completion_of(params, drafting=True)
    assert len(completion.tokens) == max_tokens
    assert completion.finish_reason == "length"
    assert completion.tokens == completion_of(params, drafting=False).tokens


@pytest.mark.parametrize("place", range(2, 14))
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_stop_string_inside_a_block(place: int, length: int) -> None:
    """Wherever it falls among the accepted tokens, the answer ends there as plain decoding does."""
    text = LetterTokenizer().decode(naive_text(KIND, PROMPT, GREEDY))
    params = replace(GREEDY, stop=(text[place : place + length],))
    spec, plain = completion_of(params, drafting=True), completion_of(params, drafting=False)
    assert spec.text == plain.text == text[: text.index(params.stop[0])]
    assert spec.tokens == plain.tokens
    assert spec.finish_reason == "stop"
    assert spec.usage.completion_tokens == text.index(params.stop[0]) + length


@pytest.mark.parametrize("place", range(10))
def test_an_end_token_inside_a_block(place: int) -> None:
    ending = naive_text(KIND, PROMPT, GREEDY)[place]
    first = naive_text(KIND, PROMPT, GREEDY).index(ending)
    params = replace(GREEDY, stop_token_ids=(ending,))
    spec, plain = completion_of(params, drafting=True), completion_of(params, drafting=False)
    assert spec.tokens == plain.tokens == naive_text(KIND, PROMPT, GREEDY)[: first + 1]
    assert spec.text == LetterTokenizer().decode(spec.tokens[:-1])
    assert spec.finish_reason == "stop"


class OneText:
    """Allows one text, and nothing at all behind it."""

    def __init__(self, text: list[int]) -> None:
        self._text, self._done = text, 0

    def allowed_after(self, path: Row[int]) -> torch.Tensor:
        ahead = self._text[self._done + len(path) :]
        return torch.isin(torch.arange(VOCABULARY), torch.tensor(ahead[:1], dtype=torch.long))

    def accept(self, tokens: Row[int]) -> None:
        self._done += len(tokens)


@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("end", [{"stop_token_ids": (9,)}, {"stop": (LETTERS[9],)}, {}], ids=["stop id", "stop string", "eos"])
@pytest.mark.parametrize("guessed", [4, 5, 12])
def test_drafts_behind_the_end_of_an_answer_harm_nothing(rule: str, end: dict[str, Any], guessed: int) -> None:
    """No token can be chosen there, for two reasons: plain decoding never gets there either."""
    text = [4, 5, 6, 7, 9 if end else LetterTokenizer.eos_token_ids[0]]
    guess = [*text, 3, 3, 3, 3, 3, 3, 3][:guessed]
    engine = tiny_engine(KIND, [Right(lambda sequence: guess)], rule=rule)
    damage_logits(engine, len(PROMPT) + len(text))
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=20, **end)
    request = engine.submit(list(PROMPT), params, constraint=lambda: OneText(text))
    assert run_all(engine, [request]) == [text]
    assert request.problem is None
    assert request.answers[0].sequence.finish_reason == "stop"
    assert request.speculation.accepted >= 2


def test_an_answer_that_goes_on_into_damaged_logits_ends_with_an_error() -> None:
    engine = tiny_engine(KIND, [Right(lambda sequence: naive_text(KIND, PROMPT, GREEDY))])
    damage_logits(engine, len(PROMPT) + 5)
    request = engine.submit(list(PROMPT), GREEDY)
    assert run_all(engine, [request]) == [naive_text(KIND, PROMPT, GREEDY)[:5]]
    assert isinstance(request.problem, ModelError)
    assert [token for event in request.inbox for token in event.tokens] == request.answers[0].sequence.output


def test_eos_ends_an_answer_and_shows_no_text() -> None:
    eos = LetterTokenizer.eos_token_ids[0]
    params = SamplingParams(max_tokens=20, logit_bias={eos: 100.0})
    completion = completion_of(params, drafting=True)
    assert (completion.tokens, completion.text, completion.finish_reason) == ([eos], "", "stop")


def test_provenance_and_account() -> None:
    completion = completion_of(replace(GREEDY, max_tokens=30), drafting=True)
    names = completion.answers[0].provenance
    accepted = completion.speculation.by_drafter["right"].accepted
    assert names.count("right") == accepted == completion.speculation.accepted
    assert names.count(MODEL_SOURCE) == completion.speculation.rounds + 1
    assert completion.speculation.drafted >= accepted
    assert completion.to_json()["usage"]["completion_tokens"] == 30


@pytest.mark.parametrize(("precision", "exact"), [(INT8, True), (FP32, False), (BF16, False)])
def test_exact_is_said_where_the_kernels_see_to_it(precision: Precision, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> bool:
        engine = tiny_engine(KIND, precision=precision)
        completion = run(engine, engine.submit(list(PROMPT), replace(GREEDY, max_tokens=3)))[1]
        return completion.exact

    assert said() is (exact and load() is not None)
    monkeypatch.setattr("hasten.model.kernels.load", lambda: None)
    assert said() is False


def test_logprobs_are_those_of_plain_decoding() -> None:
    params = replace(SAMPLED, max_tokens=20, logprobs=3)
    with_drafts, without = completion_of(params, drafting=True), completion_of(params, drafting=False)
    mine, theirs = with_drafts.answers[0].logprobs, without.answers[0].logprobs
    assert mine is not None
    assert theirs is not None
    assert len(mine) == 20
    for one, other in zip(mine, theirs, strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-9)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_n_answers_share_the_prompt_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(KIND, [SuffixDrafter()], max_sequences=3)
    forward, of_prompts = engine.executor.forward, list[int]()

    def counted(batch: Batch) -> torch.Tensor:
        of_prompts.extend(len(segment.chain) for segment in batch.segments if len(segment.chain) > 1)
        return forward(batch)

    monkeypatch.setattr(engine.executor, "forward", counted)
    request = engine.submit(list(prompt_of(100, 5)), replace(SAMPLED, n=6, max_tokens=25))
    copies = 0
    while not engine.idle:
        before = engine.scheduler.blocks.num_blocks - engine.scheduler.blocks.available
        engine.step()
        copies = max(copies, before)
        engine.scheduler.check_integrity()
    outputs = [answer.sequence.output for answer in request.answers]
    assert outputs[0] == naive_text(KIND, prompt_of(100, 5), replace(SAMPLED, max_tokens=25))
    assert len({tuple(output) for output in outputs}) > 1
    assert sum(of_prompts) == 100 + 3 * 36, "three side by side compute it once, each later one finds its full block"
    for answer in request.answers:  # each is what its own seed says alone
        alone = tiny_engine(KIND)
        params = replace(SAMPLED, seed=answer.sequence.seed, max_tokens=25)
        assert run_all(alone, [alone.submit(list(prompt_of(100, 5)), params)]) == [answer.sequence.output]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_cached_tokens_are_those_that_the_prefix_cache_gave(prefix_cache: bool, n: int) -> None:
    """What siblings share is not cached: it was computed for this request."""
    engine = tiny_engine(KIND, prefix_cache=prefix_cache)
    cached = []
    for _ in range(2):
        _, completion = run(engine, engine.submit(list(prompt_of(100, 5)), replace(SAMPLED, n=n, max_tokens=4)))
        cached.append(completion.usage.cached_tokens)
    assert cached == [0, 64 if prefix_cache else 0]


def test_what_a_preempted_request_finds_again_was_not_cached() -> None:
    engine = tiny_engine(KIND, num_blocks=5)
    requests = [engine.submit(list(prompt_of(100, seed)), replace(GREEDY, max_tokens=90)) for seed in range(3)]
    run_all(engine, requests)
    assert engine.scheduler.preemptions > 0
    completions = [event.completion for request in requests for event in request.inbox if event.completion is not None]
    assert [completion.usage.cached_tokens for completion in completions] == [0, 0, 0]


def test_greedy_answers_of_n_are_equal() -> None:
    engine = tiny_engine(KIND)
    request = engine.submit(list(PROMPT), replace(GREEDY, n=3, max_tokens=10))
    run_all(engine, [request])
    assert len({tuple(answer.sequence.output) for answer in request.answers}) == 1


def test_a_missing_seed_is_drawn_anew() -> None:
    engine = tiny_engine(KIND)
    params = SamplingParams(temperature=1.5, max_tokens=30, ignore_eos=True)
    first, second = run_all(engine, [engine.submit(list(PROMPT), params), engine.submit(list(PROMPT), params)])
    assert first != second


def test_the_context_ends_an_answer() -> None:
    engine = tiny_engine(KIND, [Right(answers(KIND))], num_blocks=2)
    _, completion = run(engine, engine.submit(list(prompt_of(120, 3)), replace(GREEDY, max_tokens=None)))
    assert completion.finish_reason == "length"
    assert len(completion.tokens) == 8


def test_more_places_than_rows_starve_nobody() -> None:
    engine = tiny_engine(KIND, max_rows=16, max_sequences=32, num_blocks=80)
    requests = [engine.submit(list(prompt_of(10, seed)), replace(GREEDY, max_tokens=40)) for seed in range(40)]
    for _ in range(3 * (40 + 10 * 16 // 4)):
        engine.step()
    assert sum(request.finished for request in requests) >= 16
    while not engine.idle:
        engine.step()
    assert all(request.answers[0].sequence.output_length == 40 for request in requests)


def test_cancelling_frees_everything_at_once() -> None:
    engine = tiny_engine(KIND, [SuffixDrafter()])
    requests = [engine.submit(list(prompt_of(90, seed)), GREEDY) for seed in range(4)]
    for _ in range(5):
        engine.step()
    for request in requests:
        engine.cancel(request)
        engine.scheduler.check_integrity()
    assert engine.idle
    assert engine.scheduler.blocks.available == engine.scheduler.blocks.num_blocks


@pytest.mark.parametrize(
    ("prompt", "params", "sentence"),
    [
        ([], GREEDY, "empty"),
        ([VOCABULARY], GREEDY, "ids go from 0"),
        ([-1], GREEDY, "ids go from 0"),
        ([1], replace(GREEDY, logit_bias={VOCABULARY: 1.0}), "not in the vocabulary"),
        ([1], replace(GREEDY, stop_token_ids=(99,)), "not in the vocabulary"),
    ],
)
def test_wrong_requests_are_refused(prompt: list[int], params: SamplingParams, sentence: str) -> None:
    engine = tiny_engine(KIND)
    with pytest.raises(InvalidRequest, match=sentence):
        engine.submit(prompt, params)
    assert engine.idle


def test_a_constraint_that_cannot_be_made_leaves_nothing_behind() -> None:
    engine = tiny_engine(KIND, [SuffixDrafter()])
    innocent = engine.submit(list(PROMPT), GREEDY)
    engine.step()

    def broken() -> Constraint:
        raise RuntimeError("no such form")

    with pytest.raises(RuntimeError, match="no such form"):
        engine.submit(list(PROMPT), SamplingParams(n=2), constraint=broken)
    assert run_all(engine, [innocent]) == [naive_text(KIND, PROMPT, GREEDY)]


def test_an_answer_that_had_just_ended_leaves_when_its_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(KIND, [SuffixDrafter()])
    broken = engine.submit(list(PROMPT), replace(GREEDY, max_tokens=1))
    with monkeypatch.context() as patch:

        def fail(*arguments: object) -> None:
            raise RuntimeError("moving rows failed")

        patch.setattr(engine.executor, "commit", fail)
        engine.step()
    assert isinstance(broken.problem, RuntimeError)
    assert engine.idle
    innocent = engine.submit(list(PROMPT), GREEDY)
    assert run_all(engine, [innocent]) == [naive_text(KIND, PROMPT, GREEDY)]


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_a_prompt_that_can_never_fit_is_refused_at_once(num_blocks: int) -> None:
    engine = tiny_engine(KIND, num_blocks=num_blocks)
    with pytest.raises(PromptTooLong, match=f"^Prompt is too long: {64 * num_blocks} tokens > {64 * num_blocks - 1} maximum; "):
        engine.submit([1] * 64 * num_blocks, GREEDY)
    assert engine.idle


@pytest.mark.parametrize(
    ("pool", "context", "model", "fix"),
    [
        (128, 1000, 1000, "raise --cache-tokens, up to the context of 1000"),
        (1024, 500, 1000, "raise --context-length, up to the model's 1000"),
        (1024, 1000, 1000, "shorten it: the model's context has 1000 positions"),
    ],
)
def test_a_prompt_that_is_too_long_names_the_bound_that_holds(pool: int, context: int, model: int, fix: str) -> None:
    scheduler = Scheduler(BlockManager(pool // 64), context, 64, 8, model)
    with pytest.raises(PromptTooLong, match=f"{fix}\\.$"):
        scheduler.check_length(1000)


@pytest.mark.parametrize(
    ("pool", "context", "model", "bound"),
    [(128, 1000, 1000, "cache_tokens"), (1024, 100, 1000, "context_length"), (1024, 1000, 1000, "model")],
)
def test_an_answer_that_is_cut_names_the_bound_that_held(pool: int, context: int, model: int, bound: str) -> None:
    engine = tiny_engine(KIND, num_blocks=pool // 64)
    engine.scheduler = Scheduler(engine.scheduler.blocks, context, 64, 8, model)
    room = engine.scheduler.capacity - len(PROMPT)
    for most, expected in ((4, "max_tokens"), (room, "max_tokens"), (room + 1, bound), (None, bound)):
        request = engine.submit(list(PROMPT), replace(GREEDY, max_tokens=most, ignore_eos=True))
        run_all(engine, [request])
        completion = request.inbox[-1].completion
        assert completion is not None
        assert completion.cut_by == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": "hot"},
        {"top_p": -0.1}, {"top_p": 1.1}, {"top_p": float("nan")}, {"top_k": -1}, {"top_k": 1.5}, {"top_k": True}, {"min_p": -0.1},
        {"repetition_penalty": 0.0}, {"presence_penalty": 3.0}, {"frequency_penalty": float("-inf")}, {"max_tokens": 0},
        {"max_tokens": True}, {"seed": -1}, {"seed": 2**64}, {"n": 0}, {"n": 65}, {"logprobs": 21}, {"logprobs": -1},
        {"stop": ("",)}, {"stop": ("x",) * 18}, {"stop": (3,)}, {"stop_token_ids": (-1,)}, {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("nan")}}, {"logit_bias": {1: 101.0}}, {"ignore_eos": 1},
        {"stop": 5}, {"stop": None}, {"stop_token_ids": 5}, {"logit_bias": None}, {"logit_bias": [1]},
    ],
    ids=repr,
)  # fmt: skip
def test_wrong_parameters_are_refused_in_one_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**wrong)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert next(iter(wrong)) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_letters_cover_the_vocabulary() -> None:
    assert len(LETTERS) == VOCABULARY - 1


def on_a_clock(engine: Engine, now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still but for forward passes, of ten milliseconds each."""
    forward = engine.executor.forward

    def ten_milliseconds(batch: Batch) -> torch.Tensor:
        now[0] += 0.010
        return forward(batch)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    engine.drafting.clock = lambda: now[0]
    monkeypatch.setattr(engine.executor, "forward", ten_milliseconds)


def test_answers_of_a_request_share_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain decoding makes one token of each of the n answers a step, so the plain speed of the request is n tokens a step."""
    curve = FrozenCurve.measured({1: 0.010, 64: 0.010})
    engine = tiny_engine(drafters=[SuffixDrafter()], curve=curve)
    on_a_clock(engine, [0.0], monkeypatch)
    params = replace(GREEDY, n=4, max_tokens=10, ignore_eos=True)
    request = engine.submit(list(PROMPT), params, speculation=SpeculationParams(mode="on"))
    run_all(engine, [request])
    assert 350.0 < request.plain_tokens / request.plain_seconds < 401.0  # the answers begin and end a step apart


@pytest.mark.parametrize("answers", [1, 3])
def test_steps_without_drafts_count_with_the_time_they_took(answers: int) -> None:
    """However wrong the prediction is: an answer that nobody guessed at was made at plain speed."""
    engine = tiny_engine(drafters=[SuffixDrafter()], curve=FrozenCurve.measured({1: 9.0, 64: 9.0}))
    engine.drafting.clock = lambda: 0.0
    params = replace(GREEDY, n=answers, max_tokens=10, ignore_eos=True)
    request = engine.submit(list(PROMPT), params, speculation=SpeculationParams(mode="off"))
    run_all(engine, [request])
    assert request.last_token is not None
    assert request.first_token is not None
    assert request.plain_seconds == pytest.approx(request.last_token - request.first_token)


def test_steps_in_which_nobody_guessed_count_without_what_asking_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """However wrong the prediction is: the step was a plain one, and the drafter's time is what it was slower by."""
    now = [0.0]

    class Silent(SuffixDrafter):
        def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
            now[0] += 0.003
            return [DraftTree() for _ in sequences]

        def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
            now[0] += 0.002

    engine = tiny_engine(drafters=[Silent()], curve=FrozenCurve.measured({1: 9.0, 64: 9.0}))
    on_a_clock(engine, now, monkeypatch)
    request = engine.submit(list(PROMPT), replace(GREEDY, max_tokens=10), speculation=SpeculationParams(mode="on"))
    run_all(engine, [request])
    completion = request.completion("m", "p", True, 0.0, drafting=True)
    assert completion.speed.plain_tokens_per_second == pytest.approx(100.0)
    assert completion.speed.tokens_per_second == pytest.approx(1 / 0.015)


def test_a_long_prompt_does_not_hold_up_those_who_decode() -> None:
    engine = tiny_engine(max_rows=64, num_blocks=32)
    first = engine.submit(list(prompt_of(5, 1)), replace(GREEDY, max_tokens=40))
    engine.step()
    second = engine.submit(list(prompt_of(150, 1)), replace(GREEDY, max_tokens=4))
    grown = []
    while second.answers[0].sequence.output_length == 0:
        before = second.answers[0].sequence.computed, first.answers[0].sequence.output_length
        engine.step()
        grown.append((second.answers[0].sequence.computed - before[0], first.answers[0].sequence.output_length - before[1]))
    assert grown == [(16, 1)] * 9 + [(6, 1)], "a quarter of a step's rows for the prompt, a token a step for who decodes"
    run_all(engine, [first, second])


@pytest.mark.parametrize("decoding", [1, 2])
def test_many_first_tokens_are_worth_a_longer_step(decoding: int) -> None:
    """One who decodes waits once where three others begin; two do not wait for three. A long prompt behind them gets no more."""
    engine = tiny_engine(max_rows=64, num_blocks=32)
    first = [engine.submit(list(prompt_of(5, seed)), replace(GREEDY, max_tokens=40)) for seed in range(decoding)]
    engine.step()
    others = [engine.submit(list(prompt_of(length, 9)), replace(GREEDY, max_tokens=4)) for length in (14, 15, 16, 150)]
    engine.step()
    read = [request.answers[0].sequence.computed for request in others]
    assert read == ([14, 15, 16, 0] if decoding == 1 else [14, 2, 0, 0])
    run_all(engine, [*first, *others])


def test_prompts_alone_take_all_rows_of_a_step() -> None:
    engine = tiny_engine(max_rows=64, num_blocks=32)
    requests = [engine.submit(list(prompt_of(100, seed)), replace(GREEDY, max_tokens=4)) for seed in range(2)]
    engine.step()
    assert [request.answers[0].sequence.computed for request in requests] == [64, 0]
    engine.step()
    assert [request.answers[0].sequence.computed for request in requests] == [100, 28]
    run_all(engine, requests)


def test_scores_of_another_number_type_become_floats() -> None:
    """Scores are added up and kept as JSON, which knows Python's numbers only."""
    tree = DraftTree([5, 6], [ROOT, 0], [np.float32(0.5), 1], ["x", "x"])  # type: ignore[list-item]
    kept = sound(tree, DraftBudget(nodes=4, depth=4), VOCABULARY)
    assert kept == DraftTree([5, 6], [ROOT, 0], [0.5, 1.0], ["x", "x"])
    assert [type(score) for score in kept.scores] == [float, float]


def test_a_tree_that_obeys_goes_through_as_it_is_and_others_are_mended() -> None:
    good = DraftTree([5, 6], [ROOT, 0], [0.5, 1.0], ["x", "x"])
    assert sound(good, DraftBudget(nodes=2, depth=2), VOCABULARY) is good
    assert len(sound(good, DraftBudget(nodes=1, depth=2), VOCABULARY)) == 1
    assert len(sound(good, DraftBudget(nodes=2, depth=1), VOCABULARY)) == 1
    twins = DraftTree([5, 5], [ROOT, ROOT], [0.5, 0.7], ["x", "y"])
    assert sound(twins, DraftBudget(nodes=2, depth=2), VOCABULARY) == DraftTree([5], [ROOT], [0.7], ["y"])
    strange = DraftTree([5], [ROOT], [float("nan")], ["x"])
    assert sound(strange, DraftBudget(nodes=2, depth=2), VOCABULARY).scores == [0.0]
