"""From the rows of a comparison to the numbers of its tables. No torch."""

from __future__ import annotations

import statistics as plain_statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hasten.bench.samples import first_difference
from hasten.bench.session import Row
from hasten.bench.statistics import Estimate, geometric_mean, median, percentile

ALL = "all"
Unit = tuple[str, str]  # load, task


@dataclass(frozen=True, slots=True)
class Cell:
    """One load in one mode. ``speed`` in tokens a second (decoding alone for one request at a time, prompts included for batches);
    ``ratio`` to the baseline, paired by task; ``of_floor`` the speed over that of a step that only reads its weights at full speed;
    ``first_ms`` (TTFT) and ``token_ms`` (TPOT) as median and 95th percentile; ``differs`` counts answers that are not the
    baseline's, None for the baseline itself."""

    load: str
    mode: str
    speed: Estimate
    ratio: Estimate | None
    of_floor: float | None
    tokens_per_round: float | None
    acceptance: float | None
    first_ms: tuple[float, float]
    token_ms: tuple[float, float]
    joules_per_token: float | None
    differs: int | None


@dataclass(slots=True)
class Comparison:
    """All rows of one file, read by load and mode."""

    rows: list[Row]
    baseline: str = "plain"
    by_mode: dict[str, dict[Unit, list[Row]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if row["kind"] == "run":
                self.by_mode.setdefault(row["mode"], defaultdict(list))[row["load"], row["task"]].append(row)

    @property
    def about(self) -> Row:
        return self.rows[0]

    @property
    def modes(self) -> list[str]:
        """In the order in which they were asked for, as far as they have run."""
        wanted = self.modes_asked
        return [*(mode for mode in wanted if mode in self.by_mode), *(mode for mode in self.by_mode if mode not in wanted)]

    @property
    def modes_asked(self) -> list[str]:
        """All that were asked for, whether they have run or not."""
        return list(self.about["settings"].get("modes", []))

    @property
    def loads(self) -> list[str]:
        return list(dict.fromkeys(row["load"] for row in self.rows if row["kind"] == "run"))

    @property
    def other_engines(self) -> list[str]:
        """Modes of other engines, whose texts may differ: their weights are rounded otherwise."""
        return list(self.about["settings"].get("other_engines", []))

    @property
    def plain_of(self) -> dict[str, str]:
        """Hasten's modes in other precisions than the first, and the plain one of the same, whose text theirs must be."""
        return dict(self.about["settings"].get("plain_of", {}))

    @property
    def finished(self) -> bool:
        return any(row["kind"] == "end" for row in self.rows)

    @property
    def failures(self) -> dict[str, str]:
        """Why each contestant failed that did; a later success of the same does not take it back."""
        return {row["mode"]: row["why"] for row in self.rows if row["kind"] == "failed"}

    @property
    def perplexities(self) -> dict[str, float | None]:
        """By mode, as far as it was measured; None for an engine that could not tell."""
        return {mode: row["value"] for row in self.rows if row["kind"] == "perplexity" for mode in row["modes"]}

    @property
    def peak_bytes(self) -> int | None:
        """The most memory that the measuring process held."""
        return max((row["peak_bytes"] for row in self.rows if row["kind"] == "memory" and row["peak_bytes"]), default=None)

    @property
    def read_bytes_s(self) -> float | None:
        """The fastest that the memory was read during this comparison."""
        return max((row["read_bytes_s"] for row in self.rows if row["kind"] == "floor"), default=None)

    @property
    def floor_speed(self) -> float | None:
        """Plain tokens a second of one request, if a step took nothing but reading its weights."""
        size = self.about["settings"].get("step_bytes")
        return self.read_bytes_s / size if size and self.read_bytes_s else None

    def cells(self, loads: Iterable[str] | None = None, whole: bool = True) -> list[Cell]:
        """One cell a load and mode; with ``whole`` also one a mode over all loads, where they have one batch size."""
        out = []
        batches = {row["batch"] for row in self.rows if row["kind"] == "run"}
        whole = whole and len(self.loads) > 1 and len(batches) == 1
        for load in loads or [*self.loads, *([ALL] if whole else [])]:
            out += [cell for mode in self.modes if (cell := self.cell(load, mode)) is not None]
        return out

    def cell(self, load: str, mode: str) -> Cell | None:
        """None where nothing was measured."""
        units = self._units(load, mode)
        rows = [row for group in units.values() for row in group]
        speeds = {unit: value for unit, group in units.items() if (value := _middle(map(speed, group))) is not None}
        if not speeds:
            return None
        samples = [sample for row in rows for sample in row["samples"]]
        estimate = median(list(speeds.values()))
        floor = None if mode in self.other_engines or mode in self.plain_of else self.floor_speed  # they read other bytes
        return Cell(
            load=load,
            mode=mode,
            speed=estimate,
            ratio=self.ratio(load, mode) if mode != self.baseline else None,
            of_floor=estimate.value / floor if floor and all(row["batch"] == 1 for row in rows) else None,
            tokens_per_round=_share(sum(max(0, len(s["tokens"]) - 1) for s in samples), sum(s["rounds"] for s in samples)),
            acceptance=_share(sum(sum(s["accepted"].values()) for s in samples), sum(sum(s["drafted"].values()) for s in samples)),
            first_ms=_two([1e3 * s["first_s"] for s in samples]),
            token_ms=_two([1e3 * s["decode_s"] / (len(s["tokens"]) - 1) for s in samples if len(s["tokens"]) > 1]),
            joules_per_token=_energy(rows),
            differs=self.differing(load, mode),
        )

    def ratio(self, load: str, mode: str) -> Estimate | None:
        """Geometric mean over tasks of a mode's speed over the baseline's on the same task; None without pairs."""
        return self._paired(load, mode, speed)

    def answer_ratio(self, load: str, mode: str) -> Estimate | None:
        """The same of whole answers, from handing the request over to the last token: above 1 they come sooner."""
        return self._paired(load, mode, answer_speed)

    def _paired(self, load: str, mode: str, measure: Callable[[Row], float | None]) -> Estimate | None:
        against = self._units(load, self.baseline)
        ratios = []
        for unit, group in self._units(load, mode).items():
            own, other = _middle(map(measure, group)), _middle(map(measure, against.get(unit, [])))
            if own and other:
                ratios.append(own / other)
        return geometric_mean(ratios) if ratios else None

    def differing(self, load: str, mode: str) -> int | None:
        """Answers that are not the baseline's (of the same precision), token for token; None for a baseline itself."""
        baseline = self.plain_of.get(mode, self.baseline)
        if mode == baseline:
            return None
        against, found = self._units(load, baseline), 0
        for unit, group in self._units(load, mode).items():
            for row in group:
                for other in against.get(unit, [])[:1]:
                    pairs = zip(other["samples"], row["samples"], strict=True)
                    found += sum(first_difference(a["tokens"], b["tokens"]) is not None for a, b in pairs)
        return found

    def may_differ(self, load: str, mode: str) -> bool:
        """Whether other answers than the baseline's are no fault: another engine rounds its weights otherwise, and where drafts are
        checked by rejection a sampled answer has the same law, not the same text."""
        rule = self.about["settings"].get("engine", {}).get("verify", "coupled")
        sampled = any(row["temperature"] > 0 for group in self._units(load, mode).values() for row in group)
        return mode in self.other_engines or (rule != "coupled" and sampled)

    def by_position(self, load: str, mode: str) -> list[tuple[int, int]]:
        """By depth of the guess: rounds that drafted so deep, and those that accepted so deep."""
        out: list[tuple[int, int]] = []
        for sample in self._samples(load, mode):
            for depth, (tried, right) in enumerate(sample["by_position"]):
                if depth == len(out):
                    out.append((0, 0))
                out[depth] = (out[depth][0] + tried, out[depth][1] + right)
        return out

    def by_drafter(self, load: str, mode: str) -> dict[str, tuple[int, int]]:
        """Guesses verified and accepted, by the drafter they are credited to."""
        out: dict[str, tuple[int, int]] = {}
        for sample in self._samples(load, mode):
            for name, count in sample["drafted"].items():
                drafted, accepted = out.get(name, (0, 0))
                out[name] = (drafted + count, accepted + sample["accepted"].get(name, 0))
        return out

    def _samples(self, load: str, mode: str) -> list[dict[str, Any]]:
        return [sample for group in self._units(load, mode).values() for row in group for sample in row["samples"]]

    def _units(self, load: str, mode: str) -> dict[Unit, list[Row]]:
        return {unit: rows for unit, rows in self.by_mode.get(mode, {}).items() if load in (ALL, unit[0])}


def speed(row: Row) -> float | None:
    """Tokens a second of one run: decoding alone for one request; for several at once all tokens over the whole time."""
    samples = row["samples"]
    if row["batch"] > 1:
        return float(sum(len(sample["tokens"]) for sample in samples) / row["wall_s"])
    tokens, seconds = len(samples[0]["tokens"]), samples[0]["decode_s"]
    return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else None


def answer_speed(row: Row) -> float | None:
    """Tokens a second of one run with everything that its user waits for: reading the prompt, and whatever drafters do before they
    guess."""
    if row["batch"] > 1:
        return speed(row)  # which counts the whole time already
    (sample,) = row["samples"]
    return float(len(sample["tokens"]) / (sample["first_s"] + sample["decode_s"]))


def interval(estimate: Estimate, form: Callable[[float], str] = lambda value: f"{value:.2f}") -> str:
    """A value with the ends of its interval; of one task there is none."""
    if estimate.count == 1:
        return form(estimate.value)
    return f"{form(estimate.value)} [{form(estimate.low)}, {form(estimate.high)}]"


def _middle(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return plain_statistics.median(found) if found else None


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _two(values: Sequence[float]) -> tuple[float, float]:
    return (percentile(values, 0.5), percentile(values, 0.95)) if values else (float("nan"), float("nan"))


def _energy(rows: list[Row]) -> float | None:
    if any(row["joules"] is None for row in rows):
        return None
    tokens = sum(len(sample["tokens"]) for row in rows for sample in row["samples"])
    return _share(sum(row["joules"] for row in rows), tokens)
