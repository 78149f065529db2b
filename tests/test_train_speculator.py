"""Training a speculator: what is recorded is what was said, what is learnt can be used, and an interruption loses little."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hasten import LLM
from hasten.cli.main import run
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, HastenError, InvalidRequest, ModelError
from hasten.core.progress import Progress, silent
from hasten.core.registry import parse_specs
from hasten.core.types import SamplingParams, Sequence
from hasten.draft.base import Drafter
from hasten.engine import loading
from hasten.model import storage
from hasten.model.head import DenseRows, TrimmedHead
from hasten.model.linear import rms_norm
from hasten.model.loaders import open_source
from hasten.model.precision import FP32
from hasten.model.speculator import Speculator, SpeculatorWeights
from hasten.train import recording as recording_module
from hasten.train import speculator as training_module
from hasten.train.alone import alone
from hasten.train.own_questions import own_questions
from hasten.train.recording import Recording, record
from hasten.train.speculator import LEVELS, Training, rate_at, train_speculator
from tiny import BASE, CPU, VOCABULARY, RandomSource

HIDDEN = BASE.hidden_size


def follow_a_circle(source: RandomSource, answers: int = 40, length: int = 20) -> Recording:
    """Each token has one that follows it, and each state makes the head say the token that was chosen there."""
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))
    following = torch.empty(VOCABULARY, dtype=torch.int64)
    following[order] = order.roll(-1)
    tokens: list[int] = []
    for answer in range(answers):
        token = answer % VOCABULARY
        for _ in range(length):
            tokens.append(token)
            token = int(following[token])
    chosen = torch.tensor(tokens)
    states = source.read("head")[chosen] + 0.05 * torch.randn(len(chosen), HIDDEN, generator=torch.Generator().manual_seed(2))
    return Recording(chosen, (states / source.read("final_norm")).to(torch.bfloat16), [length] * answers)


def test_what_can_be_known_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    source = RandomSource(BASE)
    monkeypatch.setattr(training_module, "PASSES", 60)
    monkeypatch.setattr(training_module, "BATCH", 128)
    training = Training(follow_a_circle(source), source, CPU)
    before = training.check()
    done: list[tuple[str, int, int]] = []
    weights, right = training.run(lambda *told: done.append(told))
    assert max(before) < 0.3
    assert min(right) > 0.95
    assert right == sorted(right, reverse=True)
    assert done[0][0] == "training"
    assert done[-1][1] == done[-1][2]
    assert len(done) - 1 == len(training._plan())  # each step is told
    assert [told[1] for told in done] == sorted({told[1] for told in done})
    assert weights.ids.tolist() == list(range(VOCABULARY))


def test_what_was_learnt_is_learnt_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "BATCH", 128)
    monkeypatch.setattr(training_module, "PASSES", 25)
    monkeypatch.setattr(training_module, "FURTHER_PASSES", 25)
    source, few, many = RandomSource(BASE), 40, 60
    first, right = Training(follow_a_circle(source, few), source, CPU).run()
    assert first.learnt == few * 19 // 20 * (20 - LEVELS)
    further = Training(follow_a_circle(source, many), source, CPU, first)
    assert further._plan() == [LEVELS] * len(further._plan())
    assert all(torch.equal(weight, first.tensors[name]) for name, weight in further.weights.items())
    assert further.key != Training(follow_a_circle(source, many), source, CPU).key
    assert min(further.run()[1]) > 0.9 > 0.3 > max(right)  # which so many passes from the beginning do not reach


def test_what_saw_the_answers_to_check_with_is_not_learnt_on() -> None:
    source = RandomSource(BASE)
    kept, _ = Training(follow_a_circle(source, 40), source, CPU).run()
    fewer = Training(follow_a_circle(source, 30), source, CPU, kept)
    assert fewer._plan() == Training(follow_a_circle(source, 30), source, CPU)._plan()
    assert not torch.equal(fewer.weights["state"], kept.tensors["state"])
    narrower = replace(kept, tensors=kept.tensors | {"0.down": kept.tensors["0.down"][:, 1:]})
    assert not Training(follow_a_circle(source, 40), source, CPU, narrower)._begun_from
    assert Training(follow_a_circle(source, 40), source, CPU, kept)._begun_from


def test_the_network_is_trained_as_it_is_used() -> None:
    source = RandomSource(BASE)
    training = Training(follow_a_circle(source), source, CPU)
    training._dtype = torch.float32
    tensors = {name: tensor.detach() for name, tensor in training.weights.items()}
    embedding = source.read("embedding").to(torch.bfloat16).float()
    head = TrimmedHead(DenseRows(source.read("head").to(torch.bfloat16).float()), training.ids.numpy())
    used = Speculator(SpeculatorWeights(tensors, training.ids.numpy()), embedding, head, FP32, CPU)
    states, tokens = torch.randn(6, HIDDEN), torch.arange(6)
    with torch.no_grad():
        hidden = training._level(training._matrices(), states, embedding[tokens])
        logits = training._logits(hidden, training.weights["final_norm"], training_module.EPS)
    found, said = used(states, tokens)
    assert torch.allclose(found, hidden, atol=1e-4)
    assert torch.allclose(said, logits, atol=1e-3)


def test_answers_held_out_are_not_trained_on() -> None:
    source = RandomSource(BASE)
    recording = follow_a_circle(source, answers=40, length=20)
    training = Training(recording, source, CPU)
    trained, checked = set(training._trained.tolist()), set(training._checked.tolist())
    assert not trained & checked
    assert min(checked) >= 38 * 20 > max(trained)
    assert all(place % 20 + LEVELS < 20 for place in trained | checked)  # no guess goes beyond its answer
    alone = Training(follow_a_circle(source, answers=3), source, CPU)
    assert set(alone._checked.tolist()) <= set(alone._trained.tolist())


def test_the_ids_are_those_said_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "IDS", 4)
    tokens = torch.tensor([9, 9, 9, 30, 30, 2, 2, 5])
    assert training_module._most_said(tokens, VOCABULARY).tolist() == [2, 5, 9, 30]
    assert training_module._most_said(torch.tensor([7, 7]), VOCABULARY).tolist() == [0, 1, 2, 7]


def test_rows_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    source, ids = RandomSource(BASE), torch.tensor([0, 3, 15, 16, 59])
    monkeypatch.setattr(training_module, "ROWS_AT_ONCE", 16)
    assert torch.equal(training_module._rows(source, "head", ids), source.read("head")[ids].to(torch.bfloat16))


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 400) for step in range(400)]
    top = rates.index(max(rates))
    assert rates[0] < 0.05
    assert 25 <= top <= 35
    assert max(rates) <= 1.0
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0.04 < rates[-1] < 0.06


# What is recorded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little work."""
    monkeypatch.setattr(recording_module, "PORTION", 3)
    monkeypatch.setattr(recording_module, "PORTIONS", 2)
    monkeypatch.setattr(recording_module, "ANSWER_TOKENS", 30)
    monkeypatch.setattr(recording_module, "STATES", 7)
    monkeypatch.setattr(training_module, "FEWEST_TOKENS", 20)


def config_of(model: Path, **settings: str) -> EngineConfig:
    return EngineConfig(model=str(model), precision="fp32", **settings)  # type: ignore[arg-type]


@pytest.mark.usefixtures("home", "short")
def test_each_state_is_the_one_that_chose_its_token(tiny_model: Path, tmp_path: Path) -> None:
    recording = record(config_of(tiny_model), tmp_path / "answers", 8)
    assert len(recording.tokens) == len(recording.states) == sum(recording.lengths)
    assert len(recording.lengths) > 4
    source = open_source(tiny_model)
    head = source.read("embedding" if source.description.tied_head else "head")
    normed = rms_norm(recording.states.float(), source.read("final_norm").float(), source.description.norm_eps)
    likeliest = F.linear(normed, head.float()).argmax(1)
    agree = (likeliest == recording.tokens).float()
    starts = [sum(recording.lengths[:at]) for at in range(len(recording.lengths))]
    shares = [float(agree[start : start + length].mean()) for start, length in zip(starts, recording.lengths, strict=True)]
    assert sum(share > 0.9 for share in shares) >= len(shares) // 4 - 1  # half are answers, every other greedy; states are rounded
    shifted = float((likeliest[1:] == recording.tokens[:-1]).float().mean())
    assert shifted < 0.5 < float(agree.mean())
    assert recording.left[:2].tolist() == [recording.lengths[0] - 1, recording.lengths[0] - 2]


def test_states_share_memory_until_a_portion_is_done() -> None:
    """Small pieces that live on between large ones that come and go fill the allocator's heap with holes."""
    recorder = recording_module.Recorder()
    sequence = Sequence(0, "request-0", SamplingParams(), 7, [1], 1, 100)
    recorder.begin(sequence)
    states = torch.randn(50, 16).to(torch.bfloat16)
    for state in states:
        recorder.follow(sequence, state)
    recorder.end(sequence)
    assert [len(piece) for piece in recorder._states] == [recording_module.STATES]
    assert torch.equal(recorder.recording(recorder.ended()).states, states)
    assert recorder.ended() == []


@pytest.mark.usefixtures("home", "short")
def test_an_interrupted_recording_goes_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, whole = config_of(tiny_model), record(config_of(tiny_model), tmp_path / "whole", 10)
    answered = recording_module._answered
    asked: list[dict[int, int]] = []

    def until_the_second(llm: LLM, portions: dict[int, int], progress: Progress) -> dict[int, Recording]:
        asked.append(portions)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answered(llm, portions, progress)

    monkeypatch.setattr(recording_module, "_answered", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        record(config, tmp_path / "answers", 10)
    again = record(config, tmp_path / "answers", 10)
    assert asked == [{0: 3, 3: 3}, {6: 3, 9: 1}, {6: 3, 9: 1}]
    assert torch.equal(again.tokens, whole.tokens)
    assert torch.equal(again.states, whole.states)
    assert again.lengths == whole.lengths
    (tmp_path / "answers" / "000003.safetensors").write_bytes(b"damaged")
    remade = record(config, tmp_path / "answers", 10)
    assert asked[3:] == [{3: 3}]
    assert torch.equal(remade.tokens, whole.tokens)
    assert torch.allclose(remade.states.float(), whole.states.float(), rtol=0.02, atol=0.02)  # in other batches


@pytest.mark.usefixtures("home", "short")
def test_a_recorder_misses_nothing_however_long_it_takes(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = record(config_of(tiny_model), tmp_path / "whole", 4)
    follow = recording_module.Recorder.follow

    def slowly(recorder: recording_module.Recorder, sequence: Any, state: Any) -> None:
        time.sleep(0.003)
        follow(recorder, sequence, state)

    monkeypatch.setattr(recording_module.Recorder, "follow", slowly)
    again = record(config_of(tiny_model), tmp_path / "again", 4)
    assert torch.equal(again.tokens, whole.tokens)
    assert again.lengths == whole.lengths


@pytest.mark.usefixtures("home", "short")
def test_more_questions_go_on_from_what_was_answered(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answered = recording_module._answered

    def counting(llm: LLM, portions: dict[int, int], progress: Progress) -> dict[int, Recording]:
        asked.extend(portions)
        return answered(llm, portions, progress)

    monkeypatch.setattr(recording_module, "_answered", counting)
    begun: list[SpeculatorWeights] = []
    take = Training._take
    monkeypatch.setattr(Training, "_take", lambda training, kept: (begun.append(kept), take(training, kept))[1])
    first = train_speculator(config_of(tiny_model), 12)
    more = train_speculator(config_of(tiny_model), 20)
    assert [kept.learnt > 0 for kept in begun] == [True]
    assert asked == [0, 3, 6, 9, 12, 15, 18]
    assert more.path == first.path
    assert more.tokens > first.tokens


@pytest.mark.usefixtures("home", "short")
def test_questions_are_learnt_from_like_answers(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_questions(llm: LLM, count: int, first: int) -> list[list[int]]:
        own_questions(llm, count, first=first)
        return []

    whole = record(config_of(tiny_model), tmp_path / "whole", 3)
    monkeypatch.setattr(recording_module, "own_questions", only_questions)
    questions = record(config_of(tiny_model), tmp_path / "questions", 3)
    assert len(questions.lengths) == 3
    assert torch.equal(whole.tokens[: len(questions.tokens)], questions.tokens)
    assert whole.lengths[:3] == questions.lengths
    assert len(whole.lengths) > 3


@pytest.mark.usefixtures("home", "short")
def test_a_disk_that_refuses_is_said(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("in the way")
    with pytest.raises(HastenError, match="cannot be written"):
        record(config_of(tiny_model), tmp_path / "answers", 4)


# The whole of it


@pytest.mark.usefixtures("short")
def test_auto_takes_a_speculator_once_it_is_trained(tiny_model: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = SamplingParams(max_tokens=40)
    with LLM(config_of(tiny_model)) as llm:
        assert "speculator" not in [drafter.name for drafter in llm.engine.drafting.drafters]
        expected = llm.generate("Why is that so?", params)[0].tokens
    with pytest.raises(ConfigError, match="hasten draft train -m"):
        LLM(config_of(tiny_model, draft="speculator"))
    assert run(["draft", "train", "-m", str(tiny_model), "--precision", "fp32", "--questions", "16"]) == 0
    path = storage.speculator_path(open_source(tiny_model).fingerprint)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tiny_model}: learnt from ")
    assert said[1] == str(path)
    kept = path.with_suffix(".answers")
    assert said[2].startswith(f"{kept} keeps the answers")
    for draft in ("auto", "speculator", "speculator(tree=rsd-s, width=4)", "auto+speculator(width=2)"):
        with LLM(config_of(tiny_model, draft=draft, control="fixed(3)")) as llm:
            names = [drafter.name for drafter in llm.engine.drafting.drafters]
            assert names.count("speculator") == 1
            done = llm.generate("Why is that so?", params)[0]
            assert done.tokens == expected
            assert done.speculation.by_drafter["speculator"].drafted > 0
    assert {path, kept} <= set(storage.removal(None, tiny_model).paths)  # "hasten rm" takes both along
    assert path not in storage.learnings().paths  # and it holds nothing that anybody said


@pytest.mark.usefixtures("home", "short")
def test_what_cannot_be_is_one_sentence(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = storage.speculator_path(open_source(tiny_model).fingerprint)
    with alone(path, tiny_model, "trained for"), pytest.raises(ModelError, match="trained for by another process"):
        train_speculator(config_of(tiny_model), 16)
    monkeypatch.setattr(training_module, "FEWEST_TOKENS", 10_000)
    with pytest.raises(InvalidRequest, match="ask more --questions"):
        train_speculator(config_of(tiny_model), 16)
    assert path.with_suffix(".answers").exists()  # more questions go on from there


def test_a_draft_model_of_the_catalogue_is_left_out_beside_a_speculator(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that the user names."""
    loaded: list[str | None] = []

    def draft_model(config: EngineConfig, natural: str | None, *rest: object) -> list[Drafter]:
        loaded.append(config.draft_model or natural)
        return []

    trained: list[Drafter] = []
    monkeypatch.setattr(loading, "_auto_speculator", lambda target: trained)
    monkeypatch.setattr(loading, "_auto_draft_model", draft_model)
    tokenizer = SimpleNamespace(vocabulary_fingerprint="letters")
    target = SimpleNamespace(name="tiny", tokenizer=tokenizer)

    def load(config: EngineConfig) -> str | None:
        loading._drafters(parse_specs(config.draft), config, "natural", target, CPU, silent)  # type: ignore[arg-type]
        return loaded[-1]

    model = str(tiny_model)
    assert load(EngineConfig(model=model)) == "natural"
    trained.append(Drafter())
    assert load(EngineConfig(model=model)) is None
    assert load(EngineConfig(model=model, draft_model="named")) == "named"


def test_the_verb_says_what_was_learnt_and_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[tuple[str, str, int]] = []

    def fake(config: EngineConfig, questions: int, progress: Progress) -> training_module.Outcome:
        asked.append((config.model, config.precision, questions))
        progress("training", 1, 2)
        if len(asked) > 1:
            raise KeyboardInterrupt
        return training_module.Outcome("tiny", tmp_path / "x.weights", tmp_path / "x", 123_456, [0.5, 0.25, 0.125])

    monkeypatch.setattr(training_module, "train_speculator", fake)
    assert run(["draft", "train", "-m", "tiny", "--precision", "int4", "--questions", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny: learnt from 123,456 tokens; the first guesses are right 0.50, 0.25, 0.12 of the time.",
        str(tmp_path / "x.weights"),
        f"{tmp_path / 'x'} keeps the answers: more --questions go on from them, and it can be removed.",
    ]
    assert run(["draft", "train", "-m", "tiny"]) == 130
    assert "'hasten draft train -m tiny' goes on from there" in capsys.readouterr().err.replace("\n", " ")
    assert asked == [("tiny", "int4", 7), ("tiny", "auto", 2048)]
    assert run(["draft", "train", "-m", "tiny", "--questions", "0"]) == 2


@pytest.mark.usefixtures("home", "short")
def test_a_model_without_a_question_is_told_to_ask_more(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "own_questions", lambda llm, count, first: [])
    with pytest.raises(InvalidRequest, match="said 0 tokens"):
        train_speculator(config_of(tiny_model), 16)
