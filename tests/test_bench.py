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

from hasten.bench.contestants import ablation_modes, each_mode
from hasten.bench.machine import Energy
from hasten.bench.page import write_page
from hasten.bench.plots import LIGHT, MOST_BARS, THEMES, draw_all, ratios, speeds, themed
from hasten.bench.samples import Sample, first_difference
from hasten.bench.session import ContestantFailed, ResultFile, Session, read_rows, turn
from hasten.bench.statistics import geometric_mean, median
from hasten.bench.tables import ALL, Comparison
from hasten.bench.words import DIFFERS, SLOWER, all_tables, judge, mode_by_load_table, never_slower_table, notes, speed_table
from hasten.bench.workloads import Load, Question, check_workload, from_prompts, loads, usual_workloads
from hasten.core.errors import ConfigError
from hasten.core.types import SamplingParams

TOKENS = 11
PARAMS = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
MACHINE = {"commit": "abc"}


@dataclass
class Stub:
    """Takes ``decode_s`` for ten tokens after the first, times a noise that is drawn anew each time; ``text`` is what it says."""

    name: str
    decode_s: float = 1.0
    first_s: float = 0.25
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
        one = Sample(tokens[:TOKENS], len(prompts[0]), self.first_s, took, self.rounds, drafted, accepted, by_position)
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
    assert row[:10] == [
        "one",
        "auto",
        "same",
        "16.7 [14.3, 20.0]",
        "2.00 [2.00, 2.00]",
        "0.83",
        "2.50",
        "30 %",
        "250 / 250",
        "60.0 / 69.0",
    ]
    assert row[-1] == "5"
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
    assert {row[2] for row in never_slower_table(found).rows} == verdicts


@pytest.mark.parametrize(("first", "verdict"), [(0.25, "faster"), (0.35, "faster"), (0.49, "undecided"), (0.95, SLOWER)])
def test_who_decodes_sooner_is_not_faster_where_the_answer_comes_later(first: float, verdict: str, tmp_path: Path) -> None:
    """Ten tokens in 1 to 1.4 s after 0.25 s, against a fifth less time for them after a later first token."""
    found = compared(tmp_path, [Stub("plain"), Stub("auto", 0.8, first)])
    (row,) = never_slower_table(found).rows
    assert row[2:6] == [verdict, "1.250", "1.250", "1.250"]
    whole = found.answer_ratio("one", "auto")
    assert whole is not None
    assert whole.value == pytest.approx(math.prod((0.25 + 1 + at / 10) / (first + 0.8 + 0.08 * at) for at in range(5)) ** 0.2)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = random.Random(3)
    held = sum(
        estimate.low <= 1.0 <= estimate.high
        for estimate in (geometric_mean([math.exp(draw.gauss(0, 0.2)) for _ in range(25)]) for _ in range(200))
    )
    assert 176 <= held <= 198  # 95 %, less a little for so few prompts
    assert median([3.0]).low == median([3.0]).high == 3.0
    one = geometric_mean([1.5])
    assert judge(one, one) == "too few"
    with pytest.raises(ValueError, match="nothing"):
        median([])


def test_other_text_is_flagged(tmp_path: Path) -> None:
    peers = {"other_engines": ["peer"]}
    found = compared(tmp_path, [Stub("plain"), Stub("auto", text=1), Stub("peer", text=2), Stub("equal")], settings=peers)
    assert [cell.mode for cell in found.cells() if cell.of_floor is None] == ["peer"], "other engines read other bytes"
    table = speed_table(found)
    assert table.header[2] == "text", "where no scrolling hides it"
    assert {row[1]: row[2] for row in table.rows} == {"plain": "", "auto": DIFFERS, "peer": "5 other", "equal": "same"}
    assert DIFFERS in table.marked
    assert notes(found) == [f"{DIFFERS}: 5 answers of auto (one) are not those of plain decoding; see 'hasten prove'."]
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([1, 2], [1, 2]) is None


@pytest.mark.parametrize(("temperature", "said"), [(0.0, DIFFERS), (0.8, "5 other")])
def test_only_sampled_answers_may_differ_under_rejection(temperature: float, said: str, tmp_path: Path) -> None:
    load = Load("one", asked().questions, replace(PARAMS, temperature=temperature, seed=1))
    found = compared(tmp_path, [Stub("plain"), Stub("auto", text=1)], [load], settings={"engine": {"verify": "rejection"}})
    assert speed_table(found).rows[1][2] == said
    assert bool(notes(found)) == (said == DIFFERS)


def test_few_tasks_are_not_shown_as_certain(tmp_path: Path) -> None:
    found = compared(tmp_path, [Stub("plain"), Stub("auto", 0.5)], [asked(1, "single"), asked(5, "five")])
    table = speed_table(found)
    assert [row[3:5] for row in table.rows[:2]] == [["10.0", ""], ["20.0", "2.00"]], "one task has no interval"
    assert "[" in table.rows[2][3]
    assert "fewer than 5 tasks" in table.note
    assert never_slower_table(found).rows[0][2:] == ["too few", "2.000", "", "", "1.667", "", "", "1"]
    assert "fewer than 5" not in speed_table(compared(tmp_path / "more", [Stub("plain")])).note


def test_tasks_are_counted_and_what_fills_no_batch_is_said(tmp_path: Path) -> None:
    load = asked(11, "chats, 4 at once", 4)
    settings = {"loads": [{"name": load.name, "questions": 11, "batch": 4}]}
    found = compared(tmp_path, [Stub("plain")], [load], settings=settings)
    table = speed_table(found)
    assert (table.header[-1], table.rows[0][-1]) == ("tasks", "2")
    assert notes(found) == ["chats, 4 at once: 3 of 11 questions do not fill a batch and are left out."]


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
    assert "min-width: 100%; max-width: calc(100vw" in text, "tables may be wider than text"
    assert all(table.title in text for table in all_tables(found))


def test_an_axis_ends_behind_what_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With many modes speeds are drawn over all loads, and one load on which a mode flies makes no room for itself."""
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    stubs = [Stub("plain"), *(Stub(f"mode {number}", 0.9) for number in range(MOST_BARS))]
    found = compared(tmp_path, stubs, [asked(2, "qa"), asked(2, "rag")])
    cells = found.cells()
    fast = next(cell for cell in cells if cell.load == "qa" and cell.mode == "mode 0")
    flying = replace(fast, speed=replace(fast.speed, value=9e6, high=9e6))
    monkeypatch.setattr(Comparison, "cells", lambda _: [flying if cell is fast else cell for cell in cells])
    with themed(LIGHT) as figure:
        assert speeds(found, figure)
        assert figure.axes[0].get_xlim()[1] < 9e6


def test_nothing_of_a_picture_is_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    names = ("multi-turn conversation of my own questions, T=0.8", "qa")
    found = compared(tmp_path, [Stub("plain"), Stub("auto", 0.1, noise=0.2, rounds=4)], [asked(5, name) for name in names])
    for draw in (speeds, ratios):
        with themed(LIGHT) as figure:
            assert draw(found, figure)
            figure.draw_without_rendering()
            (axes,) = figure.axes
            label = figure._supxlabel  # type: ignore[attr-defined]
            for text in (label, *axes.get_yticklabels()):
                place = text.get_window_extent()
                assert place.x0 >= 0, text
                assert place.x1 <= figure.bbox.x1, text
            assert axes.get_position().width > 0.5, "names leave room for what they name"
    largest = max(cell.ratio.high for cell in found.cells() if cell.ratio is not None)
    assert axes.get_xlim()[1] > 1.05 * largest


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
    own = loads(Letters(), "examples", PARAMS, 2, 1, 50)
    assert [len(load.questions) for load in own] == [2] * 6
    assert len({tuple(question.tokens) for load in own for question in load.questions}) == 12
    hard = loads(Letters(), "hostile", PARAMS, None, 1, 50)
    assert [load.batch for load in hard] == [1, 1, 1, 16]
    assert [load.params.temperature for load in hard] == [1.2, 1.0, 0.0, 0.0]
    assert len(from_prompts(Letters(), "own", ["abc", [1, 2]], PARAMS, 1)[0].tasks()) == 2
    for known in ("examples", "hostile", "synthetic:20x7", "spec-bench"):
        check_workload(known)
    refused: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: check_workload("spec-bend"), "did you mean 'spec-bench'"),
        (lambda: check_workload("synthetic:0x7"), "at least 1 token"),
        (lambda: loads(Letters(), "spec-bend", PARAMS, None, 1, 50), "did you mean 'spec-bench'"),
        (lambda: loads(Letters(), "humaneval", PARAMS, None, 1, 50), "set HASTEN_SHARED_DATA .* or take --workload examples"),
        (lambda: loads(Letters(), "synthetic:0x7", PARAMS, None, 1, 50), "at least 1 token"),
        (lambda: loads(Letters(), "synthetic:16x1", PARAMS, None, 1, 50), "and at least 2"),
        (lambda: loads(Letters(), "spec-bench", PARAMS, 1, 9, 50), "too few for a batch of 9"),
    )
    for ask, sentence in refused:
        with pytest.raises(ConfigError, match=sentence):
            ask()


def test_without_public_questions_there_are_those_that_come_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_SHARED_DATA", "somewhere")
    assert usual_workloads(never_slower=False) == ("spec-bench",)
    assert usual_workloads(never_slower=True) == ("spec-bench", "humaneval", "hostile")
    monkeypatch.delenv("HASTEN_SHARED_DATA")
    for workload in {*usual_workloads(never_slower=False), *usual_workloads(never_slower=True)}:
        assert loads(Letters(), workload, PARAMS, 1, 1, 50)
    with pytest.raises(ConfigError, match="not part of Hasten; set HASTEN_SHARED_DATA"):
        loads(Letters(), "spec-bench", PARAMS, 1, 1, 50)


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


@dataclass
class InStep:
    """Answers for all contestants, but not what does not fit."""

    contestants: list[Stub]
    loads: list[str] = field(default_factory=list)

    def fits(self, load: Load) -> bool:
        return load.name != "large"

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> dict[str, list[Sample]]:
        assert prompts[0][0] < 5, "a load that does not fit"
        self.loads.append("asked")
        return {one.name: one.answer(prompts, params, repeat) for one in self.contestants}


def test_a_load_that_does_not_fit_is_measured_question_by_question(tmp_path: Path) -> None:
    contestants = [Stub("plain"), Stub("auto", 0.5)]
    large = Load("large", [Question(str(at), [5 + at, 7, 9]) for at in range(3)], PARAMS, 1)
    in_step = InStep(contestants)
    found = compared(tmp_path, contestants, [asked(2, "small"), large], together=in_step)
    assert len(in_step.loads) == 2
    for load, count in (("small", 2), ("large", 3)):
        cell = found.cell(load, "auto")
        assert cell is not None
        assert cell.speed.count == count
