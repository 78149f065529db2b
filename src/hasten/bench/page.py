"""One HTML file that holds a whole comparison: tables, pictures in light and dark, machine. It loads nothing from anywhere."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from hasten.bench.plots import FORMATS
from hasten.bench.tables import Comparison
from hasten.bench.words import Table, all_tables, notes

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --faint: #e4e4e4; --mark: #a33000; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e8e8e8; --faint: #2b3038; --mark: #ffb38a; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.facts, .scroll { overflow-x: auto; }
.scroll { width: max-content; min-width: 100%; max-width: calc(100vw - 3rem); }
.scroll { margin-left: 50%; transform: translateX(-50%); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th.left, td.left { text-align: left; }
td.words { white-space: normal; }
td.mark { color: var(--mark); font-weight: 600; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { font-size: 0.9rem; }
.note { color: var(--mark); }
"""
CAPTIONS = {
    "speeds": "Tokens a second by load and mode.",
    "ratios": "Speed over plain decoding, paired by task.",
    "acceptance": "How often a guess is right, by its position in the round.",
}


def write_page(found: Comparison, folder: Path, pictures: list[str]) -> Path:
    """``report.html`` in the folder where the pictures lie."""
    settings, machine = found.about["settings"], found.about["machine"]
    title = f"{settings.get('model', '')} {settings.get('precision', '')}".strip()
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>hasten bench: {escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>hasten bench: {escape(title)}</h1>",
        *(f'<p class="note">{escape(line)}</p>' for line in notes(found)),
        *(_picture(name, folder) for name in pictures),
        *(_table(table) for table in all_tables(found)),
        _facts("Machine", machine),
        _facts("Settings", settings),
        "</body></html>",
    ]
    path = folder / "report.html"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _picture(name: str, folder: Path) -> str:
    light, dark = (_data(folder / f"{name}-{theme}.{FORMATS[0]}") for theme in ("light", "dark"))
    caption = CAPTIONS.get(name, name)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escape(caption)}" src="{light}"></picture><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _data(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _table(table: Table) -> str:
    head = "".join(f'<th class="{_side(at, table)}">{escape(title)}</th>' for at, title in enumerate(table.header))
    body = "".join(_row(row, table) for row in table.rows)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f'<h2>{escape(table.title)}</h2>{note}<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _row(row: list[str], table: Table) -> str:
    cells = (f'<td class="{_side(at, table)}{_mark(cell, table)}">{escape(cell)}</td>' for at, cell in enumerate(row))
    return f"<tr>{''.join(cells)}</tr>"


def _side(at: int, table: Table) -> str:
    return "left" if at < table.words else ""


def _mark(cell: str, table: Table) -> str:
    return " mark" if cell in table.marked else ""


def _said(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_said(part) for part in value)
    return " ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def _facts(title: str, facts: dict[str, object]) -> str:
    rows = "".join(
        f'<tr><td class="left">{escape(name)}</td><td class="left words">{escape(_said(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<h2>{escape(title)}</h2><div class="facts"><table>{rows}</table></div>'
