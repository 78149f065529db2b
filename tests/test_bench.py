"""The harness of ``hasten bench`` on stubs whose timings are known: tables, slow-downs, other texts, resuming, interruption."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hasten.bench.contestants import ModeContestant, ModesInStep, ablation_modes, each_mode
from hasten.bench.machine import Energy, read_bandwidth, step_bytes
from hasten.bench.modes import PLAIN, Subject, parse_mode, run_in_step
from hasten.bench.page import write_page
from hasten.bench.plots import THEMES, draw_all
from hasten.bench.samples import Sample, first_difference
from hasten.bench.session import ContestantFailed, ResultFile, Session, read_rows, turn
from hasten.bench.statistics import geometric_mean, median
from hasten.bench.tables import ALL, Comparison
from hasten.bench.words import DIFFERS, SLOWER, all_tables, judge, mode_by_load_table, never_slower_table, notes, speed_table
from hasten.bench.workloads import Load, Question, from_prompts, loads
from hasten.cache.blocks import BlockManager
from hasten.core.errors import ConfigError
from hasten.core.types import BLOCK_SIZE, SamplingParams
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.recycling import RecyclingDrafter
from hasten.draft.suffix import SuffixDrafter
from tiny import VOCABULARY, tiny_engine, tiny_executor

TOKENS = 11
PARAMS = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
MACHINE = {"commit": "abc"}


@dataclass
class Stub:
    """Takes ``decode_s`` for ten tokens after the first, times a noise that is drawn anew each time; ``text`` is what it says."""

    name: str
    decode_s: float = 1.0
    noise: float = 0.0
    text: int = 0
    rounds: int = 10
    fails_at: int | None = None
    interrupts_at: int | None = None
    calls: list[tuple[int, int]] = field(default_factory=list)
    draw: random.Random = field(default_factory=lambda: random.Random(1))

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> list[Sample]:
        if params.max_tokens != TOKENS:
            return []  # warming up
        self.calls.append((prompts[0][0], repeat))
        if len(self.calls) == self.fails_at:
            raise ContestantFailed("its process ended with status -11")
        if len(self.calls) == self.interrupts_at:
            raise KeyboardInterrupt
        took = self.decode_s * (1 + 0.1 * prompts[0][0]) * math.exp(self.draw.gauss(0.0, self.noise))
        tokens = [prompt[0] + self.text for prompt in prompts for _ in range(TOKENS)]
        drafted = {"suffix": 20} if self.rounds < 10 else {}
        accepted = {"suffix": 10 - self.rounds} if self.rounds < 10 else {}
        by_position = [(self.rounds, 10 - self.rounds)] if self.rounds < 10 else []
        one = Sample(tokens[:TOKENS], len(prompts[0]), 0.25, took, self.rounds, drafted, accepted, by_position)
        return [one] * len(prompts)


def asked(count: int = 5, name: str = "one", batch: int = 1) -> Load:
    return Load(name, [Question(str(at), [at, 7, 9]) for at in range(count)], PARAMS, batch)


def session(path: Path, contestants: list[Any], given: list[Load] | None = None, **named: Any) -> Session:
    settings = {"modes": [c.name for c in contestants], "step_bytes": 10**9, "model": "stub", **named.pop("settings", {})}
    results = ResultFile.open(path / "results.jsonl", settings, MACHINE)
    return Session(given or [asked()], contestants, results, lambda: 20e9, **named)


def compared(path: Path, contestants: list[Any], given: list[Load] | None = None, **named: Any) -> Comparison:
    assert session(path, contestants, given, **named).run()
    return Comparison(read_rows(path / "results.jsonl"))


def test_known_timings_give_the_known_table(tmp_path: Path) -> None:
    found = compared(tmp_path, [Stub("plain"), Stub("auto", 0.5, rounds=4)])
    plain, auto = found.cells()
    # Ten tokens in 1.0, 1.1, 1.2, 1.3 and 1.4 s: the median is that of 1.2 s.
    assert plain.speed.value == pytest.approx(10 / 1.2)
    assert plain.speed.low == pytest.approx(10 / 1.4)
    assert plain.speed.high == pytest.approx(10 / 1.0)
    assert plain.of_floor == pytest.approx(10 / 1.2 / 20)
    assert auto.ratio is not None
    assert (auto.ratio.value, auto.ratio.low, auto.ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert auto.tokens_per_round == pytest.approx(2.5)
    assert auto.acceptance == pytest.approx(0.3)
    assert auto.first_ms == pytest.approx((250.0, 250.0))
    assert auto.token_ms[0] == pytest.approx(60.0)
    assert auto.differs == 0
    assert found.by_position(ALL, "auto") == [(20, 30)]
    assert found.by_drafter(ALL, "auto") == {"suffix": (100, 30)}
    row = speed_table(found).rows[1]
    assert row[:9] == ["one", "auto", "16.7 [14.3, 20.0]", "2.00 [2.00, 2.00]", "0.83", "2.50", "30 %", "250 / 250", "60.0 / 69.0"]
    assert row[-1] == "same"
    assert notes(found) == []


def test_batches_count_all_tokens_over_the_whole_time(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    found = compared(tmp_path, [Stub("plain")], [asked(8, "eight", 4)], clock=lambda: next(ticks) * 2.0)
    (cell,) = found.cells()
    assert cell.speed.value == pytest.approx(4 * TOKENS / 2.0)
    assert cell.of_floor is None


@pytest.mark.parametrize(("slower", "verdicts"), [(1.05, {SLOWER}), (1.0, {"undecided"}), (0.95, {"faster"})])
def test_a_slowdown_of_five_percent_is_detected(slower: float, verdicts: set[str], tmp_path: Path) -> None:
    """Single runs scatter by 3 %, prompts by 40 %: pairing takes out the second, repetition the first."""
    plain, auto = Stub("plain", noise=0.03), Stub("auto", slower, noise=0.03)
    auto.draw.seed(5)
    found = compared(tmp_path, [plain, auto], [asked(40)], repeats=2)
    assert {row[-1] for row in never_slower_table(found).rows} == verdicts


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = random.Random(3)
    held = sum(
        estimate.low <= 1.0 <= estimate.high
        for estimate in (geometric_mean([math.exp(draw.gauss(0, 0.2)) for _ in range(25)]) for _ in range(200))
    )
    assert 176 <= held <= 198  # 95 %, less a little for so few prompts
    assert median([3.0]).low == median([3.0]).high == 3.0
    assert judge(geometric_mean([1.5])) == "too few"
    with pytest.raises(ValueError, match="nothing"):
        median([])


def test_other_text_is_flagged(tmp_path: Path) -> None:
    peers = {"other_engines": ["peer"]}
    found = compared(tmp_path, [Stub("plain"), Stub("auto", text=1), Stub("peer", text=2), Stub("equal")], settings=peers)
    assert [cell.mode for cell in found.cells() if cell.of_floor is None] == ["peer"], "other engines read other bytes"
    table = speed_table(found)
    assert {row[1]: row[-1] for row in table.rows} == {"plain": "", "auto": DIFFERS, "peer": "5 other", "equal": "same"}
    assert DIFFERS in table.marked
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([1, 2], [1, 2]) is None


def test_who_fails_is_a_row_that_says_so(tmp_path: Path) -> None:
    found = compared(tmp_path, [Stub("plain"), Stub("peer", fails_at=3)])
    assert found.failures == {"peer": "its process ended with status -11"}
    assert len(found.by_mode["plain"]) == 5
    assert len(found.by_mode["peer"]) == 2
    assert any("peer is left out: its process" in line for line in notes(found))


def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    contestants = [Stub("plain"), Stub("auto", interrupts_at=3)]
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, contestants).run()
    partial = Comparison(read_rows(tmp_path / "results.jsonl"))
    assert not partial.finished
    assert partial.cells(), "a partial result is a result"
    assert "not finished" in notes(partial)[0]
    done = len(partial.by_mode["plain"]) + len(partial.by_mode["auto"])
    again = [Stub("plain"), Stub("auto")]
    found = compared(tmp_path, again)
    assert found.finished
    assert len(again[0].calls) + len(again[1].calls) == 10 - done
    assert len(found.by_mode["auto"]) == 5
    third = [Stub("plain"), Stub("auto")]
    assert session(tmp_path, third).run()
    assert not third[0].calls


def test_a_time_limit_stops_between_runs(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    limited = session(tmp_path, [Stub("plain"), Stub("auto")], seconds=10.0, clock=lambda: float(next(ticks)))
    assert not limited.run()
    assert 0 < len(limited.results.done) < 10


def test_files_of_other_settings_and_other_things_are_refused(tmp_path: Path) -> None:
    compared(tmp_path, [Stub("plain")])
    path = tmp_path / "results.jsonl"
    rows = read_rows(path)
    settings = rows[0]["settings"]
    with pytest.raises(ConfigError, match="other settings"):
        ResultFile.open(path, settings | {"seed": 9}, MACHINE)
    with pytest.raises(ConfigError, match="another commit"):
        ResultFile.open(path, settings, {"commit": "def"})
    path.write_text(path.read_text()[:-10])  # killed while it wrote
    assert len(ResultFile.open(path, settings, MACHINE).rows) == len(rows) - 1
    path.write_text('{"kind": "about"}\nnonsense\n{"kind": "end"}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_rows(path)
    path.write_text('{"kind": "end"}\n{"kind": "end"}\n')
    with pytest.raises(ConfigError, match="no result file"):
        read_rows(path)


def test_turns_are_fair() -> None:
    contestants = [Stub("a"), Stub("b"), Stub("c")]
    places: dict[str, list[int]] = {stub.name: [] for stub in contestants}
    for number in range(6):
        for place, contestant in enumerate(turn(contestants, number)):
            places[contestant.name].append(place)
    assert all(sorted(seen) == [0, 0, 1, 1, 2, 2] for seen in places.values())


def test_ablation_tables(tmp_path: Path) -> None:
    modes = ablation_modes(["prediction", "suffix", "recycling", "lm"])
    assert modes[:5] == ["plain", "suffix", "recycling", "lm", "suffix+recycling"]
    assert modes[-1] == "lm@fixed(8)"
    assert "prediction" not in modes
    assert each_mode(["suffix"]) == ["plain", "suffix", "auto"]
    stubs = [Stub("plain"), Stub("auto", 0.5), Stub("suffix", 0.8)]
    table = mode_by_load_table(compared(tmp_path, stubs, [asked(2, "qa"), asked(2, "rag")]))
    assert table.header == ["mode", "qa", "rag", "all"]
    assert table.rows == [["auto", "2.00*", "2.00*", "2.00*"], ["suffix", "1.25", "1.25", "1.25"]]


def test_pictures_and_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    found = compared(tmp_path, [Stub("plain"), Stub("auto", 0.5, rounds=4)], [asked(3, "a <b> & c"), asked(3, "rag")])
    names = draw_all(found, tmp_path)
    assert names == ["speeds", "ratios", "acceptance"]
    for theme in THEMES:
        assert (tmp_path / f"speeds-{theme.name}.png").stat().st_size > 5000
    text = write_page(found, tmp_path, names).read_text()
    assert "a &lt;b&gt; &amp; c" in text
    assert "prefers-color-scheme: dark" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "src=" in text
    assert all(table.title in text for table in all_tables(found))


# The engine behind it


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
    room, needed = subject.room_in_step(3, [load])
    assert room == pool // 3 * BLOCK_SIZE
    assert needed == 2 * -(-(40 + 30 + nodes) // BLOCK_SIZE) * BLOCK_SIZE


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


class Letters:
    has_chat_template = False
    context_length = 600

    def encode(self, prompt: str) -> list[int]:
        return [ord(letter) % 50 for letter in prompt]

    def render_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        raise AssertionError("has no template")


def test_workloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"question_id": at, "category": ("qa", "rag", "math", "coding")[at % 4], "turns": ["x" * 999]} for at in range(12)]
    (tmp_path / "spec_bench_dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("HASTEN_SHARED_DATA", str(tmp_path))
    found = {load.name: load for load in loads(Letters(), "spec-bench", PARAMS, 2, 1, 50)}
    assert list(found) == ["qa", "rag", "multi-turn conversation"]
    assert [question.name for question in found["multi-turn conversation"].questions] == ["2", "3"], "from both categories"
    assert len(found["qa"].questions[0].tokens) == 600 - 512
    (batched,) = loads(Letters(), "spec-bench", PARAMS, None, 5, 50)
    assert [len(task) for task in batched.tasks()] == [5, 5]
    assert len({question.name for task in batched.tasks() for question in task}) == 10
    (shape,) = loads(Letters(), "synthetic:20x7", PARAMS, 3, 1, 50)
    assert [len(question.tokens) for question in shape.questions] == [20, 20, 20]
    assert shape.params.max_tokens == 7
    hard = loads(Letters(), "hostile", PARAMS, None, 1, 50)
    assert [load.batch for load in hard] == [1, 1, 1, 16]
    assert [load.params.temperature for load in hard] == [1.2, 1.0, 0.0, 0.0]
    assert len(from_prompts(Letters(), "own", ["abc", [1, 2]], PARAMS, 1)[0].tasks()) == 2
    refused: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: loads(Letters(), "spec-bend", PARAMS, None, 1, 50), "did you mean 'spec-bench'"),
        (lambda: loads(Letters(), "humaneval", PARAMS, None, 1, 50), "set HASTEN_SHARED_DATA"),
        (lambda: loads(Letters(), "synthetic:0x7", PARAMS, None, 1, 50), "at least 1 token"),
        (lambda: loads(Letters(), "spec-bench", PARAMS, 1, 9, 50), "too few for a batch of 9"),
    )
    for ask, sentence in refused:
        with pytest.raises(ConfigError, match=sentence):
            ask()


def test_energy_counters(tmp_path: Path) -> None:
    assert Energy(tmp_path).take() is None
    for name, start in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(start))
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")
    energy = Energy(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7500000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000000")  # wrapped around
    assert energy.take() == pytest.approx(2.5 + 2.0)
    assert energy.take() == pytest.approx(0.0)
