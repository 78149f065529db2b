"""Tables on screens of any width, and where there is no screen: nothing that they hold is shortened or left out."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hasten.bench.prove import Shown
from hasten.bench.words import Table as Words
from hasten.cli import doctor, models, prove, tables
from hasten.cli.screen import print_table
from hasten.model.catalogue import CATALOGUE

WORD = st.text("abcde-_/0123456789", min_size=1, max_size=24)
CELL = st.lists(WORD, max_size=4).map(" ".join)


def printed(table: Table, width: int, terminal: bool) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, no_color=True, highlight=False, markup=False, soft_wrap=True)
    print_table(console, table)
    return [Text.from_ansi(line).plain for line in file.getvalue().splitlines()]


def drawn(titles: list[str], rows: list[list[str]], numbers: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, title in enumerate(titles):
        table.add_column(title, justify="right" if at >= len(titles) - numbers else "left")
    for row in rows:
        table.add_row(*row)
    return table


@given(st.data(), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(4, 140), st.booleans())
def test_every_word_of_every_cell_is_whole(
    data: st.DataObject, columns: int, rows: int, numbers: int, width: int, terminal: bool
) -> None:
    titles = data.draw(st.lists(WORD, min_size=columns, max_size=columns))
    cells = [data.draw(st.lists(CELL, min_size=columns, max_size=columns)) for _ in range(rows)]
    lines = printed(drawn(titles, cells, numbers), width, terminal)
    found = [word for line in lines for word in line.split()]
    assert sorted(found) == sorted(word for row in [titles, *cells] for cell in row for word in cell.split())
    assert all(line == line.rstrip() for line in lines)
    if not terminal:
        assert len(lines) == rows + 1, "a line is a row"


def test_a_table_that_fits_is_left_alone_and_one_that_nearly_does_is_broken_at_spaces() -> None:
    titles, row = ["PROMISE", "TOK/S [95 %]"], ["guesses change nothing here", "1.0 [0.9, 1.1]"]
    assert printed(drawn(titles, [row], 1), 60, True) == [
        "PROMISE                        TOK/S [95 %]",
        "guesses change nothing here  1.0 [0.9, 1.1]",
    ]
    assert printed(drawn(titles, [row], 1), 32, True) == [
        "PROMISE             TOK/S [95 %]",
        "guesses change    1.0 [0.9, 1.1]",
        "nothing here",
    ]
    assert printed(drawn(["PROMISE", "SPEED IN TOKENS"], [["guesses change nothing here", "1.0 [0.9]"]], 1), 25, True) == [
        "                 SPEED IN",
        "PROMISE            TOKENS",
        "guesses change  1.0 [0.9]",
        "nothing here",
    ]
    assert printed(drawn(titles, [row], 1), 20, True) == printed(drawn(titles, [row], 1), 60, True), "its lines go on"


@pytest.mark.parametrize("width", ["40", "80"])
def test_no_name_of_a_list_is_shortened(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    lines = CliRunner().invoke(models.ls).stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "LICENCE", "ON", "DISK", "DRAFT"]
    assert [line.split()[0] for line in lines[1:]] == list(CATALOGUE)


def test_a_report_to_paste_has_whole_paths(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path, name = f"/a/{'long/' * 30}way", "a-model-of-a-name-that-is-not-short"
    found = {"disk": {"models_folder": path}, "models": {name: {"bytes": 10**9, "reads_per_second": 2.0, "precision": "file"}}}
    doctor._show(doctor.Report(found))
    said = capsys.readouterr().out
    assert f"  models folder     {path}\n" in said
    assert f"  {name}  1.00 GB · at most about 2 plain tok/s in file at this read speed\n" in said


def test_tables_of_measurements_keep_their_headings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("hasten.cli.screen.answers", lambda: Console(force_terminal=True, no_color=True, width=40, soft_wrap=True))
    header = ["load", "mode", "tok/s [95 %]", "tok/round", "accepted", "operations/byte"]
    tables.show(Words("A title that is longer than its table", header, [["rag", "auto", "1.0", "2", "3 %", "4"]], "A note.", 2))
    prove.report(FakeLLM(), [Shown("drafts change nothing", "greedy, auto", "guesses verified", 4, 2)])  # type: ignore[arg-type]
    said = Text.from_ansi(capsys.readouterr().out).plain
    for part in ("A title that is longer than its table", "TOK/ROUND", "ACCEPTED", "OPERATIONS/BYTE", "2 guesses verified"):
        assert part in said
    assert "…" not in said


# As wide as the main table of ``hasten bench`` gets: other engines, perplexities, energy, modes of several drafters.
HEADER = ["load", "mode", "text", "tok/s [95 %]", "over plain [95 %]", "of floor", "tok/round", "accepted", "TTFT ms p50/p95",
          "TPOT ms p50/p95", "J/token", "perplexity", "tasks"]  # fmt: skip
SPEEDS = [
    [load, mode, text, "103.3 [94.2, 125.1]", "1.72 [1.50, 1.99]", "0.58", "1.00", "25 %", "12718 / 13614", "116.1 / 117.1", "0.31",
     "10.79", "42"]
    for load in ("multi-turn conversation", "qa")
    for mode, text in (("auto", "same"), ("prediction+suffix+recycling+speculator", "DIFFERS"), ("llama.cpp draft", "1 other"))
]  # fmt: skip


def shown(table: Words, width: int, monkeypatch: pytest.MonkeyPatch, terminal: bool = True) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, no_color=True, highlight=False, markup=False, soft_wrap=True)
    monkeypatch.setattr("hasten.cli.screen.answers", lambda: console)
    tables.show(table)
    return [Text.from_ansi(line).plain for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_table_that_is_too_wide_has_parts_and_loses_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(Words("Speed", HEADER, SPEEDS, "A note of many words. " * 20, 3, ("DIFFERS",), keys=2), width, monkeypatch)
    assert max(map(len, lines)) <= width
    said = " ".join(" ".join(lines).split())
    for column, title in enumerate(HEADER):
        for word in title.upper().split():
            assert word in said
        if column > 1:
            assert sum(line.count(SPEEDS[0][column]) for line in lines) >= len(SPEEDS) // (3 if column == 2 else 1)
    assert "A note of many words." in said
    headings = [line.split() for line in lines if line.startswith("LOAD")]
    assert all(heading[:2] == ["LOAD", "MODE"] for heading in headings)
    assert 1 < len(headings) < 8
    assert said.count("recycling+speculator") == len(headings) * 2


def test_a_table_that_fits_has_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(Words("Speed", HEADER, SPEEDS, "A note.", 3, keys=2), 250, monkeypatch)
    assert len(lines) == 1 + 1 + len(SPEEDS) + 2
    assert "prediction+suffix+recycling+speculator" in lines[3]


def test_columns_that_belong_together_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    header = ["mode", "load", "verdict", "decoding", "low", "high", "whole answer", "low", "high", "tasks"]
    row = ["auto", "random tokens, T=1", "undecided", "1.129", "0.972", "1.508", "1.048", "0.988", "1.154", "3"]
    table = Words("Never slower", header, [row], "A note.", 3, keys=2, joined=(4, 5, 7, 8))
    for width in range(50, 100):
        lines = [line for line in shown(table, width, monkeypatch) if line.startswith("auto")]
        assert 1 <= len(lines) <= 3
        for three in ("1.129  0.972  1.508", "1.048  0.988  1.154"):
            assert sum(" ".join(three.split()) in " ".join(line.split()) for line in lines) == 1


def test_a_file_gets_one_whole_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = Words("Speed", HEADER, SPEEDS, "A note.", 3, keys=2)
    shown(table, 40, monkeypatch, terminal=False)
    assert capsys.readouterr().out == f"Speed\n\n{table.markdown()}\n\nA note.\n\n"


class FakeLLM:
    name, precision = "m", "int8"
    engine = SimpleNamespace(drafting=SimpleNamespace(drafters=[]))
