"""Tables of measurements on standard output: whole where there is room, else in parts one below the other."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Drawn

    from hasten.bench.words import Table

LONGEST_NAME = 24  # of several drafters; longer ones have lines where a table is too wide


def show(table: Table) -> None:
    """Drawn for a terminal, Markdown for a file or a pipe. The parts of one that is too wide begin with the same names."""
    from hasten.cli.screen import answers, print_table

    out = answers()
    if not out.is_terminal:
        click.echo(f"{table.title}\n\n{table.markdown()}\n\n{table.note}\n")
        return
    out.print(table.title, style="italic")
    for at, part in enumerate(parts(table, out)):
        if at:
            out.print()
        print_table(out, part)
    out.print(fill(table.note, out.width, break_long_words=False, break_on_hyphens=False), style="dim")
    out.print()


def parts(table: Table, out: Console) -> list[Drawn]:
    """The table whole where it fits on the screen, else in as few parts as can be, of like widths."""
    from hasten.cli.screen import BETWEEN_COLUMNS, least_width

    every = list(range(len(table.header)))
    whole = drawn(table, every)
    if least_width(whole, out) <= out.width:
        return [whole]
    least = [BETWEEN_COLUMNS + least_width(drawn(table, [at], True), out) for at in every]
    found = _parts(table, least, out.width + BETWEEN_COLUMNS)
    for width in range(out.width, 0, -1):
        narrower = _parts(table, least, width)
        if len(narrower) > len(found):
            break
        found = narrower
    return [drawn(table, part, True) for part in found]


def _parts(table: Table, least: list[int], width: int) -> list[list[int]]:
    """The columns of each part: the keys, and as many of the others as there is room for, at least one. ``least`` is what each
    column takes, with the space beside it."""
    keys = list(range(table.keys or table.words))
    found = [keys]
    for at in range(len(keys), len(table.header)):
        if at in table.joined:
            continue
        together = [at]
        while together[-1] + 1 in table.joined:
            together.append(together[-1] + 1)
        grown = [*found[-1], *together]
        if found[-1] == keys or sum(least[one] for one in grown) <= width:
            found[-1] = grown
        else:
            found.append([*keys, *together])
    return found


def drawn(table: Table, columns: list[int], narrow: bool = False) -> Drawn:
    """These columns of a table. ``narrow`` breaks long names of several drafters behind a plus sign."""
    from rich.table import Table as Drawn
    from rich.text import Text

    made = Drawn(box=None, pad_edge=False, header_style="bold")
    for at in columns:
        made.add_column(table.header[at].upper(), justify="left" if at < table.words else "right")
    for row in table.rows:
        cells = [_in_lines(row[at]) if narrow and at < table.words else row[at] for at in columns]
        made.add_row(*(Text(cell, style="bold red") if cell in table.marked else cell for cell in cells))
    return made


def _in_lines(name: str) -> str:
    lines = [""]
    for piece in name.replace("+", "+\n").splitlines():
        if lines[-1] and len(lines[-1]) + len(piece) > LONGEST_NAME:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)
