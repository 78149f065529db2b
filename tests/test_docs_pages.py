"""What the pages promise: numbers name their origin, links lead somewhere, the site is whole and asks no other host."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from doc_blocks import PAGES, ROOT
from hasten.draft import DRAFTERS
from test_architecture import RANKS

PART = re.compile(r"<!-- made: ([a-z-]+) -->.*?<!-- end: \1 -->", re.DOTALL)
MEASURED = re.compile(
    r"Measured: `(?P<script>[^`]+)`(?: and `[^`]+`)* · (?P<machine>[A-Za-z0-9, ]+) · "
    r"[^·]*\b[0-9a-f]{7,40}\b[^·]* · 20\d\d-\d\d-\d\d"
)
NUMBER = re.compile(r"\**[+-]?\d[\d,.]*\**( |x|$|\[)")


def machines(text: str) -> set[str]:
    """The names in the table of machines."""
    found = re.search(r"## Machines\n\n\|.*\n\|.*\n((?:\|.*\n)+)", text)
    assert found, "docs/benchmarks.md has no table of machines"
    return {line.split("|")[1].strip() for line in found[1].splitlines()}


def unmeasured(text: str, known: set[str]) -> list[str]:
    """The first line of each table of measured numbers that no well-formed line of origin follows.

    A table counts as measured when a quarter of its cells begins with a number that has decimals. Tables that the code makes, and
    the table of machines, do not count.
    """
    bad: list[str] = []
    text = PART.sub("", text)
    for found in re.finditer(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = found[0].splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
        cells = [cell for row in rows for cell in row]
        numbers = [cell for cell in cells if NUMBER.match(cell) and re.search(r"\d\.\d", cell)]
        if lines[0].startswith("| name | processor") or len(numbers) * 4 < len(cells) or not cells:
            continue
        origin = MEASURED.match(text[found.end() :].lstrip("\n").split("\n")[0])
        if origin is None or origin["machine"] not in known or not exists(origin["script"]):
            bad.append(lines[0])
    return bad


def exists(script: str) -> bool:
    """Whether a line of origin names a script of this repository, or a verb."""
    return script.startswith("hasten ") or (ROOT / script.split()[0]).is_file()


KNOWN = machines((ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")) | {"any machine"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_no_number_without_a_script(page: str) -> None:
    bad = unmeasured((ROOT / page).read_text(encoding="utf-8"), KNOWN)
    assert not bad, f"{page}: no line 'Measured: `SCRIPT` · MACHINE · COMMIT · DATE' follows {bad}"


def test_the_checker_of_numbers_finds_what_is_planted() -> None:
    table = "| model | 1 row | 4 |\n| --- | --- | --- |\n| tiny | 1.5 ms | 2.5 |\n"
    good = "\nMeasured: `benchmarks/plain_step.py` · Xeon · 018af2a · 2026-11-21\n"
    assert unmeasured(table + good, {"Xeon"}) == []
    for wrong in (
        "",
        "\nMeasured: `benchmarks/plain_step.py` · Xeon · 018af2a\n",
        "\nMeasured: `benchmarks/plain_step.py` · Xeon · soon · 2026-11-21\n",
        "\nMeasured: `benchmarks/plain_step.py` · Abacus · 018af2a · 2026-11-21\n",
        "\nMeasured: `benchmarks/nothing.py` · Xeon · 018af2a · 2026-11-21\n",
    ):
        assert unmeasured(table + wrong, {"Xeon"}) == ["| model | 1 row | 4 |"], wrong
    assert unmeasured("| option | default |\n| --- | --- |\n| `--port` | a word |\n", {"Xeon"}) == []


def test_the_numbers_of_the_readme_stand_in_the_benchmarks() -> None:
    readme, known = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/benchmarks.md"))
    rows = [line for line in readme.splitlines() if line.startswith("|") and re.search(r"\d\.\d", line.split("|")[-3])]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.replace("**", "").strip("|").split("|")]
        assert cells[3] in known.replace("**", ""), f"{cells[3]} is no number of docs/benchmarks.md"
        assert cells[4] in known, f"{cells[4]} is no commit of docs/benchmarks.md"


def test_troubleshooting_quotes_what_is_really_said() -> None:
    """Each message in bold is in the sources, ``...`` and lone capitals standing for what varies."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quotes = [quote for line in re.findall(r"^\*\*`.*?\.\*\*", text, re.MULTILINE) for quote in re.findall(r"`(.+?)`", line)]
    assert len(quotes) >= 10
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.sh")]
    said = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))
    for quote in quotes:
        parts = [part.strip() for part in re.split(r"'?\.\.\.'?|\b[NM]\b", quote) if len(part.strip()) > 4]
        assert parts, quote
        for part in parts:
            assert part in said, f"nothing says {part!r}"


def test_benchmarks_has_tables_to_check() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^Measured: ", text, re.MULTILINE)) >= 6
    without = re.sub(r"^Measured: .*\n", "", text, flags=re.MULTILINE)
    assert len(unmeasured(without, KNOWN)) >= 6


def test_every_drafter_has_a_page_and_every_room_a_row() -> None:
    pages = {page.stem for page in (ROOT / "docs/drafters").glob("*.md")} - {"index"}
    assert pages == set(DRAFTERS.rows) - {"none"}
    rooms = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rooms) == set(RANKS)
    assert [RANKS[room] for room in rooms] == sorted(RANKS.values())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / target).exists(), f"{page} links to {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, of a copy of what it is made from; a warning is an error."""
    pytest.importorskip("zensical", reason="needs what makes the site: pip install 'hasten[docs]'")
    pytest.importorskip("mkdocstrings", reason="needs what makes the site: pip install 'hasten[docs]'")
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


class Loads(HTMLParser):
    """The addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        loads = tag in ("script", "img", "iframe", "source", "video", "audio") or (
            tag == "link" and (named.get("rel") or "") not in ("canonical", "next", "prev", "alternate")
        )
        self.found += [named[key] or "" for key in ("src", "href", "srcset") if loads and named.get(key)]


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site: Path) -> None:
    done = build(site)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {str(page.relative_to(site / "site")) for page in (site / "site").rglob("*.html")}
    assert made >= {f"{page[5:-3]}.html" for page in PAGES if page.startswith("docs/")}
    for name in made:
        loads = Loads()
        loads.feed((site / "site" / name).read_text(encoding="utf-8"))
        assert loads.found, name
        assert [one for one in loads.found if re.match(r"(https?:)?//", one)] == [], name
    for sheet in (site / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet
    python = (site / "site/reference/python.html").read_text(encoding="utf-8")
    assert all(f"hasten.engine.llm.LLM.{name}" in python for name in ("generate", "stream", "chat", "close"))


def test_a_broken_link_or_a_class_that_is_gone_breaks_the_build(site: Path) -> None:
    page = site / "docs/quickstart.md"
    whole = page.read_text(encoding="utf-8")
    for wrong in ("[gone](nowhere.md)", "[gone](serving.md#no-such-heading)"):
        page.write_text(f"{whole}\n{wrong}\n", encoding="utf-8")
        assert build(site).returncode != 0, wrong
    page.write_text(whole, encoding="utf-8")
