"""Modes of one loaded model: the same text, counted, one after another and step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from torch import Tensor

from hasten.bench.contestants import ModeContestant, ModesInStep
from hasten.bench.machine import read_bandwidth, step_bytes
from hasten.bench.modes import PLAIN, Subject, parse_mode, run_in_step
from hasten.bench.samples import Sample
from hasten.bench.session import ResultFile, Session, read_rows
from hasten.bench.tables import Comparison
from hasten.bench.words import SLOWER, never_slower_table
from hasten.bench.workloads import Load, Question
from hasten.cache.blocks import BlockManager
from hasten.cli.bench import bench
from hasten.cli.bench_options import automatic, mode_names, with_named_drafters
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, ModelError
from hasten.core.types import BLOCK_SIZE, Batch, SamplingParams, Sequence
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.recycling import RecyclingDrafter
from hasten.draft.suffix import SuffixDrafter
from tiny import VOCABULARY, damage_logits, tiny_engine, tiny_executor

PARAMS = SamplingParams(max_tokens=11, ignore_eos=True)
MACHINE = {"commit": "abc"}


@pytest.fixture
def subject() -> Subject:
    return Subject(tiny_engine(drafters=[SuffixDrafter(), RecyclingDrafter()]))


def test_modes_of_one_model_say_the_same_and_count(subject: Subject) -> None:
    prompt = [at % 7 for at in range(40)]
    params = replace(PARAMS, max_tokens=32)
    samples = {}
    for name in ("plain", "auto", "suffix", "recycling", "suffix@fixed(3)"):
        contestant = ModeContestant(subject, parse_mode(name, subject.loaded))
        (samples[name],) = contestant.answer([prompt], params, 0)
    assert len({tuple(sample.tokens) for sample in samples.values()}) == 1
    assert samples["plain"].rounds == 31
    assert not samples["plain"].drafted
    assert set(samples["suffix"].drafted) == {"suffix"}
    fixed = samples["suffix@fixed(3)"]
    assert len(fixed.by_position) <= 3
    assert sum(right for _, right in fixed.by_position) == sum(fixed.accepted.values())
    assert all(early >= late for (_, early), (_, late) in zip(fixed.by_position, fixed.by_position[1:], strict=False))


def test_an_answer_that_ends_in_an_error_ends_the_run(subject: Subject) -> None:
    damage_logits(subject.engine, 20)
    with pytest.raises(ModelError, match="position 20"):
        subject.run(PLAIN, [[5, 6, 7] * 5, [1] * 12], [PARAMS] * 2)
    assert subject.engine.idle


def test_modes_in_step_say_what_they_say_alone(subject: Subject) -> None:
    """Each in its part of the pool: neither writes into the other's, however they take turns."""
    modes = [PLAIN, parse_mode("off", subject.loaded), parse_mode("suffix@fixed(3)", subject.loaded)]
    prompts = [[5, 6, 7] * 6, [9, 8, 7, 6] * 5]
    params = [SamplingParams(max_tokens=30, ignore_eos=True)] * 2
    alone = [sample.tokens for sample in subject.run(PLAIN, prompts, params)]
    together = subject.run_in_step(modes, prompts, params)
    assert [[sample.tokens for sample in samples] for samples in together] == [alone] * 3
    assert sum(together[2][0].drafted.values()) > 0
    assert sum(together[1][0].drafted.values()) == 0
    assert subject.run_in_step(modes, prompts, params, "again")[0][0].tokens == alone[0]


def test_room_of_modes_in_step(subject: Subject) -> None:
    """Prompt, answer and tree of every sequence in whole blocks, against an equal share of the pool's blocks."""
    pool, nodes = subject.engine.scheduler.blocks.num_blocks, subject.engine.controller.most_nodes
    load = Load("one", [Question("a", [5] * 7), Question("b", [5] * 40)], SamplingParams(max_tokens=30), 2)
    room, needed = subject.room_in_step(3, load)
    assert room == pool // 3 * BLOCK_SIZE
    assert needed == 2 * -(-(40 + 30 + nodes) // BLOCK_SIZE) * BLOCK_SIZE
    for count in (1, 2, 8, 64):
        assert ModesInStep(subject, [PLAIN] * count).fits(load) == (pool // count * BLOCK_SIZE >= needed)


def test_modes_with_a_draft_model_in_step() -> None:
    """Each mode's sequences have blocks of their own in the draft's pool, too."""
    executor = tiny_executor("llama", num_blocks=64, perturbed=0.1)
    draft = LanguageModelDrafter(executor.forward, BlockManager(64, prefix_cache=False), VOCABULARY, 512)
    subject = Subject(tiny_engine("llama", [draft], num_blocks=64))
    modes = [PLAIN, *(parse_mode(f"lm@fixed({depth})", subject.loaded) for depth in (1, 2, 4))]
    prompts = [[5, 6, 7] * 6, [9, 8, 7, 6] * 5]
    params = [SamplingParams(max_tokens=30, ignore_eos=True)] * 2
    alone = [subject.run(mode, prompts, params) for mode in modes]
    together = subject.run_in_step(modes, prompts, params, "in step")
    for one, other in zip(alone, together, strict=True):
        assert [(sample.tokens, sample.drafted) for sample in one] == [(sample.tokens, sample.drafted) for sample in other]
    assert sum(together[3][0].drafted.values()) > 0


@dataclass
class SteppedStub:
    """Takes 40 steps of one second each; four seconds each between the 30th and the 60th second of ``now``, a clock for all."""

    now: list[float]
    left: int = 40
    seconds: float = 0.0

    @property
    def going(self) -> bool:
        return self.left > 0

    def step(self) -> None:
        took = 4.0 if 30.0 <= self.now[0] < 60.0 else 1.0
        self.now[0] += took
        self.seconds += took
        self.left -= 1

    def samples(self) -> list[Sample]:
        return [Sample([], 0, 0.0, self.seconds)]

    def end(self) -> None:
        self.left = 0


def test_what_disturbs_the_machine_disturbs_all_that_run_in_step() -> None:
    now = [0.0]
    alone = [run_in_step([SteppedStub(now)])[0][0].decode_s for _ in range(2)]  # type: ignore[list-item]
    assert max(alone) / min(alone) > 1.1
    now[0] = 0.0
    one, other = (samples[0].decode_s for samples in run_in_step([SteppedStub(now), SteppedStub(now)]))  # type: ignore[list-item]
    assert one + other > 90.0
    assert one == pytest.approx(other, rel=0.05)


def test_a_comparison_in_step_is_one_row_a_mode_and_goes_on(tmp_path: Path, subject: Subject) -> None:
    modes = [PLAIN, parse_mode("auto", subject.loaded)]
    load = Load("one", [Question(str(at), [at, 7, 9]) for at in range(3)], PARAMS)
    settings = {"modes": ["plain", "auto"], "step_bytes": 10**9, "model": "stub"}
    contestants = [ModeContestant(subject, mode) for mode in modes]
    for seconds in (0.0, float("inf")):
        results = ResultFile.open(tmp_path / "results.jsonl", settings, MACHINE)
        in_step = ModesInStep(subject, modes)
        done = Session([load], contestants, results, lambda: 20e9, seconds=seconds, together=in_step).run()
        assert done == (seconds > 0.0)
    found = Comparison(read_rows(tmp_path / "results.jsonl"))
    assert {mode: len(units) for mode, units in found.by_mode.items()} == {"plain": 3, "auto": 3}
    assert found.differing("one", "auto") == 0


@dataclass
class Late(SuffixDrafter):
    """Guesses well, and takes ``delay`` of a clock before it begins."""

    clock: list[float]
    delay: float

    def __post_init__(self) -> None:
        super().__init__()

    def begin(self, sequence: Sequence) -> None:
        self.clock[0] += self.delay
        super().begin(sequence)


@pytest.mark.parametrize(("delay", "verdict"), [(0.0, "faster"), (40.0, SLOWER)])
def test_a_drafter_that_takes_its_time_before_it_begins_is_found_out(
    delay: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass takes a second of a clock that nothing else moves, however many rows it has: guessing pays, and waiting does not."""
    clock = [0.0]
    engine = tiny_engine(drafters=[Late(clock, delay)])
    forward = engine.executor.forward

    def timed(batch: Batch) -> Tensor:
        clock[0] += 1.0
        return forward(batch)

    monkeypatch.setattr(engine.executor, "forward", timed)
    monkeypatch.setattr("hasten.bench.modes.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    subject = Subject(engine)
    modes = [PLAIN, parse_mode("auto", subject.loaded)]
    load = Load("one", [Question(str(at), [at, 7, 9] * 6) for at in range(5)], replace(PARAMS, max_tokens=40))
    results = ResultFile.open(tmp_path / "results.jsonl", {"modes": ["plain", "auto"]}, MACHINE)
    contestants = [ModeContestant(subject, mode) for mode in modes]
    assert Session([load], contestants, results, lambda: 20e9, together=ModesInStep(subject, modes)).run()
    (row,) = never_slower_table(Comparison(results.rows)).rows
    assert float(row[3]) > 1.2, "decoding alone is faster"
    assert row[2] == verdict


def test_auto_stays_what_it_is_beside_drafters_that_modes_name() -> None:
    config = with_named_drafters(EngineConfig(model="tiny"), "plain,auto,trie+suffix@fixed(2),off,nothing")
    assert config.draft == "auto+trie+suffix"
    assert with_named_drafters(EngineConfig(model="tiny"), None).draft == "auto"
    assert with_named_drafters(EngineConfig(model="tiny", draft="suffix"), "trie").draft == "suffix"
    other = EngineConfig(model="tiny", draft_model="other")
    assert with_named_drafters(other, "plain,foreign").draft == "auto", "auto loads it, under the name that its vocabulary gives"
    assert with_named_drafters(other, "lm,foreign,trie").draft == "auto+lm+trie"
    loaded = ["prediction", "suffix", "recycling", "trie"]
    free = ("prediction", "suffix", "recycling")
    assert automatic(config, loaded, free) == free
    built = ("prediction", "hierarchy", "recycling")
    assert automatic(config, [*built, "suffix"], built) == built
    assert automatic(EngineConfig(model="tiny"), loaded[:3], free) is None
    assert parse_mode("auto@fixed(2)", loaded, ("suffix",)).drafters == ("suffix",)


def test_control_is_the_rule_of_modes_that_name_none() -> None:
    options = {
        "ablation": False,
        "never_slower": False,
        "server": False,
        "modes": "off,auto,suffix@fixed(2)",
        "control": "fixed(4)",
    }
    assert mode_names(options, ["suffix"]) == ["plain", "off", "auto@fixed(4)", "suffix@fixed(2)"]
    assert mode_names(options | {"never_slower": True}, ["suffix"]) == ["plain", "off", "auto@fixed(4)"]
    assert mode_names(options | {"modes": "each"}, ["suffix"]) == ["plain", "suffix@fixed(4)", "auto@fixed(4)"]
    assert mode_names(options | {"modes": None, "server": True}, ["suffix"]) == ["plain", "auto"], "the server is started with it"
    assert mode_names(options | {"control": "auto"}, ["suffix"]) == ["plain", "off", "auto", "suffix@fixed(2)"]


@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
def test_modes_verify_by_the_rule_that_was_loaded(rule: str, subject: Subject) -> None:
    subject.engine.drafting.rule = rule
    told = subject.variant(parse_mode("auto", subject.loaded))
    request = told.submit([5, 6, 7] * 5, replace(PARAMS, temperature=1.0, seed=3))
    while not request.finished:
        told.step()
    completion = next(event.completion for event in request.inbox if event.completion is not None)
    assert completion.verify == rule


def test_a_repetition_remembers_nothing_of_the_one_before(subject: Subject) -> None:
    mode = ModeContestant(subject, parse_mode("recycling@fixed(3)", subject.loaded))
    prompt = [3, 1, 4, 1, 5]
    first, again = (mode.answer([prompt], PARAMS, repeat)[0] for repeat in (0, 1))
    assert first.accepted == again.accepted
    repeated = mode.answer([prompt], PARAMS, 1)[0]
    assert sum(repeated.accepted.values()) > sum(first.accepted.values()), "the same tenant would remember"


def test_modes_that_are_none_are_refused(subject: Subject) -> None:
    assert parse_mode("plain", subject.loaded) == PLAIN
    for text, sentence in (("sufix", "did you mean 'suffix'"), ("lm", "not loaded"), ("auto@fixed(99)", "control must be")):
        with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
            parse_mode(text, subject.loaded)


def test_bytes_of_a_step(subject: Subject) -> None:
    decoder = subject.engine.executor.decoder
    # 2 layers of 48 wide: q, k, v (96 rows), output 48 x 64, gate and up 2 x 64, down 48 x 64; head 61 x 48; 8 bytes each
    linear = 2 * ((4 + 2 + 2) * 16 * 48 + 48 * 64 + 2 * 64 * 48 + 48 * 64) + 61 * 48
    assert step_bytes(decoder.weights, 8) == 8 * linear
    assert read_bandwidth(8, 1) > 1e8


# Workloads and machine


def test_other_precisions_stand_beside_and_each_is_compared_with_itself(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wikitext2_test_part.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    monkeypatch.setenv("HASTEN_SHARED_DATA", str(tmp_path))
    shapes = ["--workload", "synthetic:8x6", "--compare", "plain,auto", "--draft", "suffix", "--no-plots"]
    asked = [*shapes, "-m", str(tiny_model), "--precision", "fp32", "--also", "int8,fp64", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(bench, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = Comparison(read_rows(tmp_path / "out" / "results.jsonl"))
    assert found.modes == ["plain", "auto", "int8 plain", "int8 auto", "fp64 plain", "fp64 auto"]
    load = found.loads[0]
    assert [found.differing(load, mode) for mode in found.modes] == [None, 0, None, 0, None, 0]
    quality = found.perplexities
    assert set(quality) == set(found.modes)
    assert quality["plain"] == quality["auto"] == pytest.approx(quality["fp64 plain"], rel=1e-4)
    assert quality["plain"] != quality["int8 plain"] == quality["int8 auto"] == pytest.approx(quality["plain"], rel=0.2)
    floors = {mode: cell.of_floor is not None for mode in found.modes if (cell := found.cell(load, mode)) is not None}
    assert floors == {mode: mode in ("plain", "auto") for mode in found.modes}, "others read other bytes"


@pytest.mark.parametrize(
    ("own", "also", "sentence"),
    [
        ("fp32", "fp32", "--also names 'fp32' and --precision fp32 is the same"),
        ("fp32", "int8,fp32", "--also names 'fp32' and --precision fp32 is the same"),
        ("fp32", "int8,int8", "--also names 'int8' twice"),
        ("auto", "int8,int8", "--also names 'int8' "),
        ("auto", "file", "--also names 'file' and --precision auto is the same"),
        ("file", "auto", "--also names 'auto', which is file here, and --precision file is the same"),
        ("fp32", "", "precision must be one of"),
    ],
)
def test_precisions_are_named_once(
    own: str, also: str, sentence: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.model.linear_file.file_runs_best", lambda source: True)
    asked = ["-m", str(tiny_model), "--precision", own, "--also", also, "--out", str(tmp_path)]
    with pytest.raises(ConfigError, match=sentence):
        CliRunner().invoke(bench, asked, catch_exceptions=False)
