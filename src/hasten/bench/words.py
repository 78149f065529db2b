"""The tables of a comparison as words: the terminal, Markdown and the page all show these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hasten.bench.statistics import Estimate
from hasten.bench.tables import ALL, Cell, Comparison, interval

SLOWER, DIFFERS, FAILED = "SLOWER", "DIFFERS", "failed"
LEAST_TASKS = 5  # a bootstrap interval of fewer is too narrow to judge by


@dataclass(frozen=True, slots=True)
class Table:
    """``words`` leading columns are words, the rest numbers; cells that equal one of ``marked`` deserve a second look. ``keys``
    leading columns say what a row is of (0: all ``words``), and ``joined`` columns mean nothing without the one before them: where
    a table is shown in parts, the first stand in each of them, and the second stay where they are."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    words: int = 1
    marked: tuple[str, ...] = ()
    keys: int = 0
    joined: tuple[int, ...] = ()

    def markdown(self) -> str:
        lines = [" | ".join(self.header), " | ".join("---" for _ in self.header), *(" | ".join(row) for row in self.rows)]
        return "\n".join(f"| {line} |" for line in lines)


def all_tables(found: Comparison) -> list[Table]:
    """Every table for which there are rows."""
    tables = [speed_table(found), depth_table(found), drafter_table(found)]
    if found.about["settings"].get("never_slower"):
        tables.insert(0, never_slower_table(found))
    if found.about["settings"].get("ablation"):
        tables.insert(0, mode_by_load_table(found))
    return [table for table in tables if table.rows]


def notes(found: Comparison) -> list[str]:
    """What the reader must know before the numbers: what is missing, what failed."""
    out = [] if found.finished else ["This comparison is not finished: some of what was asked for has not been measured."]
    out += _other_texts(found)
    for load in found.about["settings"].get("loads", []):
        left = load["questions"] % load["batch"]
        if left:
            out.append(f"{load['name']}: {left} of {load['questions']} questions do not fill a batch and are left out.")
    for row in found.rows:
        if row["kind"] == "perplexity" and row["value"] is None:
            out.append(f"No perplexity of {row['modes'][0]}: {row['why']}")
    return out + [f"{mode} is left out: {why}" for mode, why in found.failures.items()]


def _other_texts(found: Comparison) -> list[str]:
    """What must never be: answers of Hasten's own that are not those of plain decoding."""
    out = []
    for mode in found.modes:
        counts = {load: found.differing(load, mode) or 0 for load in found.loads if not found.may_differ(load, mode)}
        loads = [load for load, count in counts.items() if count]
        if loads:
            total = sum(counts.values())
            out.append(
                f"{DIFFERS}: {total} answers of {mode} ({'; '.join(loads)}) are not those of plain decoding; see 'hasten prove'."
            )
    return out


def speed_table(found: Comparison) -> Table:
    """The main table, a row a load and mode."""
    cells = found.cells()
    energy = any(cell.joules_per_token is not None for cell in cells)
    header = ["load", "mode", "text", "tok/s [95 %]", f"over {found.baseline} [95 %]", "of floor", "tok/round", "accepted"]
    header += ["TTFT ms p50/p95", "TPOT ms p50/p95"]
    quality = found.perplexities
    header += [*(["J/token"] if energy else []), *(["perplexity"] if quality else []), "tasks"]
    rows = []
    for cell in cells:
        row = [
            cell.load,
            cell.mode,
            text_of(cell, found),
            interval(cell.speed, lambda value: f"{value:.1f}"),
            "" if cell.ratio is None else interval(cell.ratio),
            _or_blank(cell.of_floor),
            _or_blank(cell.tokens_per_round),
            "" if cell.acceptance is None else f"{100 * cell.acceptance:.0f} %",
            "{:.0f} / {:.0f}".format(*cell.first_ms),
            "{:.1f} / {:.1f}".format(*cell.token_ms),
        ]
        if energy:
            row.append(_or_blank(cell.joules_per_token))
        if quality:
            row.append(_or_blank(quality.get(cell.mode)))
        rows.append([*row, str(cell.speed.count)])
    rows += [["", mode, "", FAILED, *[""] * (len(header) - 4)] for mode in found.failures if mode not in found.by_mode]
    floor = found.floor_speed
    note = ""
    if floor is not None:
        note = (
            f"Memory read at {(found.read_bytes_s or 0) / 1e9:.1f} GB/s in this run; a step that only reads its weights would "
            f"give {floor:.1f} tok/s: 'of floor' is the share of that. "
        )
    note += "tok/s is decoding alone, prompts left out; where several run at once it is all tokens over the whole time."
    if any(cell.speed.count < LEAST_TASKS for cell in cells):
        note += f" With fewer than {LEAST_TASKS} tasks the intervals are too narrow to judge by; of one task there is none."
    if found.peak_bytes:
        note += f" Peak memory of this process: {found.peak_bytes / 1e9:.2f} GB."
    return Table("Speed", header, rows, note, 3, (DIFFERS, FAILED), keys=2)


def text_of(cell: Cell, found: Comparison) -> str:
    """Whether the texts are the baseline's. Where they may differ, it is said how many do."""
    if cell.differs is None:
        return ""
    if cell.differs == 0:
        return "same"
    return f"{cell.differs} other" if found.may_differ(cell.load, cell.mode) else DIFFERS


def never_slower_table(found: Comparison) -> Table:
    """Per mode and load two ratios to plain decoding, of decoding alone and of the whole answer, and a verdict from both."""
    rows = []
    for mode in found.modes:
        for load in [*found.loads, *([ALL] if len(found.loads) > 1 else [])]:
            decoding, answer = found.ratio(load, mode), found.answer_ratio(load, mode)
            if mode != found.baseline and decoding is not None and answer is not None:
                rows.append([mode, load, judge(decoding, answer), *_ends(decoding), *_ends(answer), str(decoding.count)])
    header = ["mode", "load", "verdict", "decoding", "low", "high", "whole answer", "low", "high", "tasks"]
    note = (
        "Speed over plain decoding, paired by task: geometric mean and ends of the 95 % interval. 'decoding' leaves the time to "
        "the first token out; 'whole answer' is from the request to its last token; where several run at once, both are "
        f"that. 'off' is drafters that are loaded and switched off by the request. {SLOWER}: one of the two intervals lies wholly "
        "below 1; 'faster': both lie wholly above; else 'undecided'."
    )
    return Table("Never slower", header, rows, note, 3, (SLOWER,), keys=2, joined=(4, 5, 7, 8))


def _ends(ratio: Estimate) -> list[str]:
    ends = [f"{ratio.low:.3f}", f"{ratio.high:.3f}"] if ratio.count > 1 else ["", ""]
    return [f"{ratio.value:.3f}", *ends]


def judge(decoding: Estimate, answer: Estimate) -> str:
    """One word: faster only where both intervals say so, slower where one does. A few tasks alone decide nothing."""
    if decoding.count < LEAST_TASKS:
        return "too few"
    if decoding.high < 1 or answer.high < 1:
        return SLOWER
    return "faster" if decoding.low > 1 and answer.low > 1 else "undecided"


def mode_by_load_table(found: Comparison) -> Table:
    """A row a mode, a column a load: the ratio to plain decoding. The best of each column carries a star."""
    loads = [*found.loads, *([ALL] if len(found.loads) > 1 else [])]
    modes = [mode for mode in found.modes if mode != found.baseline]
    values = {(mode, load): found.ratio(load, mode) for mode in modes for load in loads}
    rows = []
    for mode in modes:
        row = [mode]
        for load in loads:
            own = values[mode, load]
            best = max((v.value for (_, where), v in values.items() if where == load and v is not None), default=0.0)
            row.append("" if own is None else f"{own.value:.2f}{'*' if own.value == best else ''}")
        rows.append(row)
    note = f"Speed over {found.baseline} (geometric mean, paired by task); * is the best of its column."
    return Table("Ablation", ["mode", *loads], rows, note)


def depth_table(found: Comparison) -> Table:
    """Acceptance by the position of the guess in its round."""
    rows, shown = [], 8
    for mode in found.modes:
        counts = found.by_position(ALL, mode)[:shown]
        if counts:
            cells = [f"{100 * right / tried:.0f} %" for tried, right in counts]
            rows.append([mode, *cells, *[""] * (shown - len(cells))])
    header = ["mode", *(f"{depth}" for depth in range(1, shown + 1))]
    return Table("Acceptance by position", header, rows, "Of the rounds that guessed so deep, how many accepted so deep.")


def drafter_table(found: Comparison) -> Table:
    """Who guessed how much, over all loads."""
    rows = []
    for mode in found.modes:
        for name, (drafted, accepted) in sorted(found.by_drafter(ALL, mode).items()):
            rows.append([mode, name, str(drafted), str(accepted), f"{100 * accepted / max(1, drafted):.0f} %"])
    header = ["mode", "drafter", "verified", "accepted", "share"]
    return Table("Acceptance by drafter", header, rows, "A guess is counted for the drafter it is credited to.", 2)


def _or_blank(value: float | None, form: Callable[[float], str] = lambda value: f"{value:.2f}") -> str:
    return "" if value is None else form(value)
