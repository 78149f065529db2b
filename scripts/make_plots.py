"""Draws the tables of ``docs/benchmarks.md`` as pictures (SVG), so that no picture shows other numbers than its page.

``scripts/make_pages.py`` writes and checks them. Bars begin at zero; a line stands at 1, the speed of plain decoding. The colours
can be read on white and on black.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

INK, FAINT, BAR, LINE = "#808890", "#80889055", "#3c7386", "#d9771f"
LEFT, WIDTH, ROW, TOP = 210, 430, 26, 14


@dataclass(frozen=True)
class Bar:
    """One row of a table: a ratio, and its interval where there is one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def rows_after(page: str, heading: str, value: int) -> list[Bar]:
    """The rows of the first table whose line of headings begins with ``heading``; ``value`` is the column of the ratio, and rows
    that have none are left out.

    Raises ValueError where there is no such table.
    """
    found = re.search(rf"^\| {re.escape(heading)}.*\n\|[ -|]*\n((?:\|.*\n)+)", page, re.MULTILINE)
    if found is None:
        raise ValueError(f"there is no table that begins with {heading!r}")
    bars: list[Bar] = []
    for line in found[1].splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        numbers = [float(number) for number in re.findall(r"\d+\.\d+", cells[value])]
        if numbers:
            bars.append(Bar(cells[0], *numbers))
    return bars


def picture(bars: list[Bar], title: str) -> str:
    """Horizontal bars as one SVG."""
    most = max(bar.high or bar.value for bar in bars)
    ticks = [step / 2 for step in range(int(most * 2) + 2)]
    scale = WIDTH / ticks[-1]
    bottom = TOP + ROW * len(bars)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {bottom + 46}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13" fill="{INK}">'
    ]
    for tick in ticks:
        x = LEFT + tick * scale
        out.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{FAINT}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    for at, bar in enumerate(bars):
        middle = TOP + ROW * at + ROW / 2
        end = LEFT + bar.value * scale
        out.append(f'<text x="{LEFT - 8}" y="{middle + 4.5}" text-anchor="end">{escape(bar.label)}</text>')
        out.append(f'<rect x="{LEFT}" y="{middle - 8}" width="{end - LEFT:.1f}" height="16" rx="2" fill="{BAR}"/>')
        if bar.low is not None and bar.high is not None:
            low, high = LEFT + bar.low * scale, LEFT + bar.high * scale
            whisker = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10M{high:.1f} {middle - 5}v10"
            out.append(f'<path d="{whisker}" stroke="{INK}" stroke-width="2"/>')
            end = max(end, high)
        out.append(f'<text x="{end + 7:.1f}" y="{middle + 4.5}">{bar.value:.2f}</text>')
    one = LEFT + scale
    out.append(f'<line x1="{one:.1f}" y1="{TOP - 6}" x2="{one:.1f}" y2="{bottom + 4}" stroke="{LINE}" stroke-width="2"/>')
    out.append(f'<text x="{LEFT + WIDTH / 2}" y="{bottom + 38}" text-anchor="middle">{escape(title)}</text></svg>')
    return "\n".join(out) + "\n"


def pictures(page: str) -> dict[str, str]:
    """File names below ``docs/pictures`` and what they hold, from the text of ``docs/benchmarks.md``."""
    title = "auto over plain with 95 % intervals (plain = 1)"
    return {
        "speedup-by-group.svg": picture(rows_after(page, "load | int4, six questions", 1), title),
        "never-slower.svg": picture(rows_after(page, "load | tokens of the pair's answers", 2), title),
    }
