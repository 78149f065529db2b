"""A speculator goes on from the target's own states: the right ones, after whatever steps; and its file is used or set aside."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from hasten.core.config import SpeculationParams
from hasten.core.errors import ConfigError
from hasten.core.types import Batch, DraftTree, SamplingParams, Segment, Sequence
from hasten.draft.base import DraftBudget
from hasten.draft.speculator import SpeculatorDrafter
from hasten.engine.engine import Engine
from hasten.model import speculator
from hasten.model.head import ConvertedRows, DenseRows, TrimmedHead, rows_for_guesses
from hasten.model.linear_packed import few_bits_run
from hasten.model.precision import FP32, FP64, INT8, Precision
from hasten.model.speculator import Speculator
from speculators import random_speculator, random_weights
from test_exact import expected_texts, prompt_of
from tiny import BASE, CPU, VOCABULARY, tiny_engine, tiny_executor

HIDDEN = BASE.hidden_size
GREEDY = SamplingParams(max_tokens=60, ignore_eos=True, seed=3)
SAMPLED = replace(GREEDY, temperature=0.8)


class AllKnowing:
    """A network that knows a text, and finds its place in it by the state that it is given: that of the target there, which it has
    computed in one pass. It gives the next state, and says what comes. Raises ValueError for any other state, or token."""

    def __init__(self, texts: list[list[int]]) -> None:
        executor = tiny_executor(num_blocks=32)
        self.calls = 0
        self._texts: list[tuple[list[int], Tensor]] = []
        for text in texts:
            executor.forward(Batch([Segment(list(range(16)), 0, text)]))
            assert executor.states is not None
            self._texts.append((text, executor.states))

    def blank(self, rows: int) -> Tensor:
        return torch.ones(rows, HIDDEN)

    def __call__(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        found = [self._place(state, int(token)) for state, token in zip(states, tokens, strict=True)]
        following = torch.stack([self._texts[text][1][place + 1] for text, place in found])
        logits = torch.full((len(found), VOCABULARY), -20.0, dtype=torch.float64)
        for row, (text, place) in enumerate(found):
            known = self._texts[text][0]
            if place + 2 < len(known):
                logits[row, known[place + 2]] = 20.0
        return following, logits

    def _place(self, state: Tensor, token: int) -> tuple[int, int]:
        for number, (text, states) in enumerate(self._texts):
            near = (states - state).abs().amax(1)
            place = int(near.argmin())
            if near[place] < 1e-9 and place + 1 < len(text) and text[place + 1] == token:
                return number, place
        raise ValueError("this is no state of the texts, or another token was chosen there")


def all_knowing(texts: list[list[int]]) -> tuple[SpeculatorDrafter, AllKnowing]:
    network = AllKnowing(texts)
    head = TrimmedHead(DenseRows(tiny_executor().decoder.weights.embedding), np.arange(VOCABULARY))  # type: ignore[arg-type]
    return SpeculatorDrafter(network, head, VOCABULARY, 512, width=1), network


def answer_all(
    engine: Engine, prompts: list[tuple[int, ...]], params: SamplingParams, wish: SpeculationParams | None = None
) -> tuple[list[list[int]], int, int, int]:
    """The answers; rounds, guesses and right guesses of all."""
    requests = [engine.submit(list(prompt), params, speculation=wish or SpeculationParams()) for prompt in prompts]
    while not engine.idle:
        engine.step()
        engine.scheduler.check_integrity()
    speculations = [request.speculation for request in requests]
    outputs = [request.answers[0].sequence.output for request in requests]
    return (
        outputs,
        sum(each.rounds for each in speculations),
        sum(each.drafted for each in speculations),
        sum(each.accepted for each in speculations),
    )


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("pool", [96, 13], ids=["roomy", "preempted"])
def test_it_is_given_the_state_that_chose_the_last_token(params: SamplingParams, pool: int) -> None:
    """Whatever was drafted and accepted before, and after a sequence was computed again: every guess is right, from the first."""
    prompts = [prompt_of(length, length) for length in (5, 17, 40)]
    wanted = expected_texts("llama", [(prompt, params) for prompt in prompts], [[] for _ in prompts])
    knows, network = all_knowing([[*prompt, *text] for prompt, text in zip(prompts, wanted, strict=True)])
    engine = tiny_engine("llama", [knows], num_blocks=pool, max_rows=48)
    outputs, rounds, drafted, accepted = answer_all(engine, prompts, params)
    assert outputs == wanted
    assert network.calls > 0
    assert accepted == drafted > 0.8 * sum(map(len, wanted)) > 4 * rounds


def test_states_of_another_place_are_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The mutant: the state of the root, whatever was accepted."""
    prompt = prompt_of(9, 1)
    (wanted,) = expected_texts("llama", [(prompt, GREEDY)], [[]])
    knows, _ = all_knowing([[*prompt, *wanted]])
    engine = tiny_engine("llama", [knows], num_blocks=96)
    observe = engine.drafting.__class__.observe

    def of_the_root(self: object, sequence: Sequence, tree: DraftTree, verdict: object, logits: Tensor, states: Tensor) -> None:
        observe(self, sequence, tree, verdict, logits, states[:1].expand_as(states))  # type: ignore[arg-type]

    monkeypatch.setattr(engine.drafting.__class__, "observe", of_the_root)
    outputs, _, drafted, accepted = answer_all(engine, [prompt], GREEDY)
    assert outputs == [wanted]
    assert drafted == accepted < 0.8 * len(wanted)
    assert "Drafter 'speculator' failed" in caplog.text


def test_it_guesses_at_once_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(9, 1)
    (wanted,) = expected_texts("llama", [(prompt, GREEDY)], [[]])
    knows, _ = all_knowing([[*prompt, *wanted]])
    engine = tiny_engine("llama", [knows], num_blocks=96)
    asked: list[int] = []
    ask = engine.controller.ask

    def seldom(name: str, paid: bool, rounds: list[object]) -> list[bool]:
        asked.append(len(asked))
        return ask(name, paid, rounds) if len(asked) % 5 == 4 else [False for _ in rounds]  # type: ignore[arg-type]

    monkeypatch.setattr(engine.controller.__class__, "ask", lambda self, name, paid, rounds: seldom(name, paid, rounds))
    outputs, _, drafted, accepted = answer_all(engine, [prompt], GREEDY)
    assert outputs == [wanted]
    assert accepted == drafted > 20


@pytest.mark.parametrize("tree", [{}, {"tree": "rsd-c", "branching": (3, 2)}, {"tree": "rsd-s", "width": 4}, {"tree": "top-k"}])
@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("precision", [FP64, INT8], ids=["fp64", "int8"])
def test_wrong_guesses_change_nothing(tree: dict[str, object], rule: str, precision: Precision) -> None:
    prompts = [prompt_of(length, length) for length in (3, 30)]
    for params in (GREEDY, SAMPLED) if rule == "coupled" else (GREEDY,):
        plain, *_ = answer_all(tiny_engine("qwen2", [], precision=precision), prompts, params)
        engine = tiny_engine(
            "qwen2", [random_speculator(kind="qwen2", precision=precision, **tree)], precision=precision, rule=rule
        )
        outputs, _, drafted, _ = answer_all(engine, prompts, params)
        assert outputs == plain
        assert drafted > 0


def test_guesses_do_not_depend_on_company() -> None:
    generator = torch.Generator().manual_seed(4)
    sequences = [text_of(number) for number in range(4)]
    states = torch.randn(4, HIDDEN, generator=generator, dtype=torch.float64)
    budgets = [DraftBudget(nodes=6 + number, depth=2 + number) for number in range(4)]

    def propose(numbers: list[int]) -> list[DraftTree]:
        made = random_speculator()
        for number in numbers:
            made.begin(sequences[number])
            made.follow(sequences[number], states[number])
        return made.propose([sequences[number] for number in numbers], [budgets[number] for number in numbers])

    together = propose([0, 1, 2, 3])
    for number, tree in enumerate(together):
        alone = propose([number])[0]
        assert (alone.tokens, alone.parents) == (tree.tokens, tree.parents)
        assert alone.scores == pytest.approx(tree.scores)  # sums over other numbers of rows differ in the last digit
    assert all(1 < max(tree.depths()) <= budget.depth for tree, budget in zip(together, budgets, strict=True))


def text_of(number: int, length: int = 12) -> Sequence:
    rng = random.Random(number)
    tokens = [rng.randrange(VOCABULARY) for _ in range(length)]
    return Sequence(number, f"request-{number}", SamplingParams(), 7, tokens, length, length_limit=400)


def test_it_is_silent_where_the_state_is_not_that_of_the_last_token() -> None:
    made, sequence = random_speculator(), text_of(1)
    made.begin(sequence)
    assert made.propose([sequence], [DraftBudget(8, 4)]) == [DraftTree()]
    made.follow(sequence, torch.ones(HIDDEN, dtype=torch.float64))
    assert len(made.propose([sequence], [DraftBudget(8, 4)])[0])
    sequence.tokens.append(3)
    assert made.propose([sequence], [DraftBudget(8, 4)]) == [DraftTree()]
    made.end(sequence)


def test_words_of_the_text_join_the_heads_choice() -> None:
    """Id 60 is none of the head's 40; in the text it may be guessed."""
    made, sequence = random_speculator(width=40), text_of(1)
    sequence.tokens[3] = 60
    made.begin(sequence)
    made.follow(sequence, torch.ones(HIDDEN, dtype=torch.float64))
    (tree,) = made.propose([sequence], [DraftBudget(64, 1)])
    assert {token for token in sequence.tokens if token >= 40} >= {token for token in tree.tokens if token >= 40}
    own, ids = made._shortlists.pick(sequence.id, torch.zeros(len(made._shortlists._head.ids)))
    assert 60 in ids
    assert len(own) == len(ids)


def test_the_network_is_what_its_docstring_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, in floats; and nearly so in four bits, or in eight where no kernel has four."""
    weights, embedding = random_weights(), tiny_executor("llama", FP32).decoder.weights.embedding
    head = TrimmedHead(DenseRows(embedding), weights.ids)  # type: ignore[arg-type]
    made, states, tokens = weights.tensors, torch.randn(5, HIDDEN), torch.tensor([1, 2, 3, 4, 60])

    def norm(rows: Tensor, weight: str) -> Tensor:
        return rows / rows.pow(2).mean(-1, keepdim=True).add(speculator.EPS).sqrt() * made[weight]

    hidden = norm(states, "state_norm") @ made["state"].T + norm(embedding[tokens], "token_norm") @ made["token"].T
    gate, up = (norm(hidden, "0.norm") @ made["0.gate_up"].T).chunk(2, -1)
    hidden = hidden + (gate * gate.sigmoid() * up) @ made["0.down"].T
    logits = norm(hidden, "final_norm") @ embedding[: len(weights.ids)].T
    for precision, four_bits, most in ((FP32, True, 1e-4), (INT8, False, 0.05), (INT8, True, 0.12)):
        monkeypatch.setattr(speculator, "few_bits_run", lambda have=four_bits: have and few_bits_run())
        found, said = Speculator(weights, embedding, head, precision, CPU)(states, tokens)
        assert float((found - hidden).norm() / hidden.norm()) < most
        assert float((said - logits).norm() / logits.norm()) < most


def test_heads_that_only_guess_take_half_the_bytes() -> None:
    random = torch.Generator().manual_seed(3)
    codes, scale = torch.randint(-127, 128, (96, 256), dtype=torch.int8, generator=random), torch.rand(96, generator=random) + 0.1
    ids, x = np.arange(5, 69), torch.randn(3, 256, generator=random)
    rows = ConvertedRows(codes.numpy(), scale.numpy(), False)
    whole, guessing = rows(ids)(x), rows_for_guesses(rows)(ids)(x)
    apart = float((whole - guessing).norm() / whole.norm())
    assert (0.01 < apart < 0.12) if few_bits_run() else apart == 0.0
    assert torch.equal(rows(ids)(x), whole)  # others who have these rows keep their bits
    dense = DenseRows(torch.randn(8, 4))
    assert rows_for_guesses(dense) is dense


# Its file


def test_a_file_is_found_again(tmp_path: Path) -> None:
    path, weights = tmp_path / "x.weights", random_weights(ids=[2, 5, 9])
    assert speculator.load(path, "model", HIDDEN, VOCABULARY) is None
    speculator.save(weights, path, "model")
    found = speculator.load(path, "model", HIDDEN, VOCABULARY)
    assert found is not None
    assert found.ids.tolist() == [2, 5, 9]
    assert found.layers == 1
    for name, tensor in weights.tensors.items():
        assert torch.equal(found.tensors[name], tensor.to(torch.bfloat16).float())
    speculator.save(random_weights(1, [2, 5, 9]), path, "model")
    other = speculator.load(path, "model", HIDDEN, VOCABULARY)
    assert other is not None
    assert other.identity != found.identity


def _with(name: str, tensor: Tensor | None, **metadata: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tensors = {key: each.contiguous() for key, each in random_weights().tensors.items()}
        tensors["ids"] = torch.arange(40)
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
        path.write_bytes(safetensors.torch.save(tensors, {"format": speculator.FORMAT, "target": "model", **metadata}))

    return write


HOSTILE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(5000)) and None,
    "cut short": lambda path: (
        speculator.save(random_weights(), path, "model") or (path.write_bytes(path.read_bytes()[:-100]) and None)
    ),
    "of another model": lambda path: speculator.save(random_weights(), path, "other"),
    "of no format": lambda path: path.write_bytes(safetensors.torch.save({"ids": torch.arange(3)})) and None,
    "without ids": _with("ids", None),
    "ids as floats": _with("ids", torch.arange(40.0)),
    "ids out of the vocabulary": _with("ids", torch.tensor([1, VOCABULARY])),
    "negative ids": _with("ids", torch.tensor([-1, 3])),
    "ids that do not ascend": _with("ids", torch.tensor([3, 3])),
    "no ids": _with("ids", torch.empty(0, dtype=torch.int64)),
    "a tensor missing": _with("token_norm", None),
    "a tensor too many": _with("1.norm", torch.ones(HIDDEN)),
    "another hidden size": _with("state", torch.ones(HIDDEN, HIDDEN + 1)),
    "a layer of no width": _with("0.down", torch.ones(())),
    "no number": _with("state_norm", torch.full((HIDDEN,), torch.nan)),
    "infinite": _with("0.norm", torch.full((HIDDEN,), torch.inf)),
    "whole numbers": _with("state", torch.ones(HIDDEN, HIDDEN, dtype=torch.int32)),
    "learnt from no number": _with("ids", torch.arange(40), learnt="much"),
    "learnt from less than nothing": _with("ids", torch.arange(40), learnt="-5"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_set_aside(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.weights"
    HOSTILE[kind](path)
    assert speculator.load(path, "model", HIDDEN, VOCABULARY) is None
    assert "set aside as x.damaged" in caplog.text
    assert not path.exists()
    assert speculator.load(path, "model", HIDDEN, VOCABULARY) is None


def test_a_file_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.weights").mkdir()
    assert speculator.load(tmp_path / "x.weights", "model", HIDDEN, VOCABULARY) is None
    assert "it is left out" in caplog.text


def test_a_shape_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="width"):
        random_speculator(width=0)
