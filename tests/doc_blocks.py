"""Reads the fenced blocks of Markdown pages, with what their markers say.

A marker is an HTML comment on the line before the fence: ``<!-- not run: REASON -->`` or ``<!-- file: NAME -->``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")))
LANGUAGES = ("sh", "python", "json", "toml", "text")
_MARKER = re.compile(r"<!-- (not run|file): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """``line`` is that of the opening fence; ``reason`` says why it is not run, ``file`` which file it is."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None = None
    file: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.reason is None and self.file is None

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, comments left out."""
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(page: str, text: str | None = None) -> Iterator[Block]:
    """Every fenced block of a page. Raises ValueError for a fence that is not closed."""
    lines = (text if text is not None else (ROOT / page).read_text(encoding="utf-8")).splitlines()
    at = 0
    while at < len(lines):
        opened = re.fullmatch(r"```(\w*)", lines[at])
        if opened is None:
            at += 1
            continue
        end = next((place for place in range(at + 1, len(lines)) if lines[place] == "```"), None)
        if end is None:
            raise ValueError(f"{page}:{at + 1} opens a block that nobody closes")
        marker = _MARKER.fullmatch(lines[at - 1]) if at else None
        kind, said = (marker[1], marker[2]) if marker else (None, None)
        yield Block(
            page, at + 1, opened[1], "\n".join(lines[at + 1 : end]) + "\n",
            reason=said if kind == "not run" else None, file=said if kind == "file" else None,
        )  # fmt: skip
        at = end + 1


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]
