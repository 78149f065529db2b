"""Writes the parts of the documentation that the code itself knows: options, fields, metrics, errors, drafters, rooms.

    python scripts/make_pages.py             # write them
    python scripts/make_pages.py --check     # exit status 1 and their names where they are stale

A part stands in a page between ``<!-- made: NAME -->`` and ``<!-- end: NAME -->``; what is around it is written by hand.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
from make_plots import pictures
from pydantic import BaseModel

import hasten
from hasten.cli.draft import VERBS as DRAFT_VERBS
from hasten.cli.main import EPILOG, VERBS, cli
from hasten.cli.options import ENGINE_HELP, LIMIT_HELP, SECTIONS
from hasten.cli.settings import COMMON, VARIABLES, variable
from hasten.core import errors
from hasten.core.config import EngineConfig
from hasten.draft import DRAFTERS
from hasten.serve import metrics
from hasten.serve.limits import Limits
from hasten.serve.openapi import BODIES, STATUSES
from hasten.serve.server import Server

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PART = re.compile(r"(<!-- made: ([a-z-]+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)
NOTHING_LOADED = cast("Server", SimpleNamespace(requests={}, models=SimpleNamespace(hosts={})))
ROOMS = ("core", "native", "sampling", "cache", "model", "draft", "control", "engine", "serve", "bench", "train", "cli")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines) + "\n"
    )


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, as Markdown."""
    plain = " ".join((text or "").split("\n\n")[0].split()).replace("``", "`")
    return re.split(r"(?<=[.!?])(?<!e\.g\.) (?=[A-Z])", plain)[0]


def drafters() -> str:
    rows: list[list[str]] = []
    for name, target in sorted(DRAFTERS.rows.items()):
        module, _, attribute = target.partition(":")
        found = importlib.import_module(module)
        said = getattr(found, attribute).__doc__ if name == "none" else found.__doc__
        rows.append([f"[`{name}`]({name}.md)" if name != "none" else f"`{name}`", first_sentence(said)])
    return table(["name", "what it does"], rows)


def rooms() -> str:
    rows = [[f"`{room}`", first_sentence(importlib.import_module(f"hasten.{room}").__doc__)] for room in ROOMS]
    return table(["room", "holds"], rows)


def verbs() -> str:
    rows = [[f"[`hasten {name}`](#hasten-{name})", row.help] for name, row in VERBS.items()]
    return table(["verb", ""], rows)


def options() -> str:
    out = [f"{' '.join(EPILOG.split())}\n"]
    for name in VERBS:
        context = click.Context(cli, info_name="hasten")
        command = cli.get_command(context, name)
        assert command is not None
        out.append(f"## hasten {name}\n\n{_about(command)}\n")
        if isinstance(command, click.Group):
            for below in DRAFT_VERBS:
                inner = command.get_command(click.Context(command, info_name=name, parent=context), below)
                assert inner is not None
                out.append(f"### hasten {name} {below}\n\n{_about(inner)}\n")
                out.append(_options(inner))
        else:
            out.append(_options(command))
    return "\n".join(out)


def _about(command: click.Command) -> str:
    """A verb's own words; lines that click is told not to wrap stay lines."""
    text = inspect.cleandoc(command.help or "").split("\f")[0].strip()
    blocks = [
        f"```text\n{part[1:].strip()}\n```" if part.startswith("\b") else " ".join(part.split()) for part in text.split("\n\n")
    ]
    return "\n\n".join(blocks)


def _options(command: click.Command) -> str:
    rows: list[list[str]] = []
    context = click.Context(command, info_name=str(command.name))
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or parameter.name in COMMON or not isinstance(parameter, click.Option):
            continue
        names, text = record
        rows.append([f"`{names}`", text.replace("<", "&lt;"), f"`{variable(parameter)}`", SECTIONS.get(str(parameter.name), "")])
    if not rows:
        return ""
    rows.sort(key=lambda row: row[3] != "")
    return (
        table(["option", "", "variable", "kind"], rows)
        if any(row[3] for row in rows)
        else table(["option", "", "variable"], [row[:3] for row in rows])
    )


def variables() -> str:
    return table(["variable", "what it is"], [[f"`{name}`", text] for name, text in VARIABLES.items()])


def engine_settings() -> str:
    return _settings(EngineConfig, ENGINE_HELP)


def limits() -> str:
    rows = [[f"`--{field.name.replace('_', '-')}`", f"`{field.default}`", LIMIT_HELP[field.name]] for field in fields(Limits)]
    return table(["option", "default", "what it bounds"], rows)


def _settings(settings: type, helps: dict[str, str]) -> str:
    known: Any = fields(settings)
    return table(["setting", "default", ""], [[f"`{field.name}`", f"`{field.default!r}`", helps[field.name]] for field in known])


def error_classes() -> str:
    rows: list[list[str]] = []

    def walk(kind: type, depth: int) -> Iterator[tuple[type, int]]:
        yield kind, depth
        for below in sorted(kind.__subclasses__(), key=lambda one: one.__name__):
            if below.__module__ == errors.__name__:
                yield from walk(below, depth + 1)

    for kind, depth in walk(errors.HastenError, 0):
        rows.append(["&emsp;" * depth + f"`{kind.__name__}`", first_sentence(kind.__doc__)])
    return table(["error", "when"], rows)


def statuses() -> str:
    return table(["status", "when"], [[status, text] for status, text in STATUSES.items()])


def metric_names() -> str:
    """Every family that ``/metrics`` has with no model loaded; their texts come from where they are counted."""
    rows: list[list[str]] = []
    for family in metrics.own_families(NOTHING_LOADED):
        labels = ", ".join(f"`{label}`" for label in family._labelnames)  # type: ignore[attr-defined]
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append([f"`{name}`", family.type, labels, family.documentation])
    return table(["name", "type", "labels", "what it is"], rows)


def request_fields() -> str:
    out: list[str] = []
    for path, (body, summary) in BODIES.items():
        names = body.model_fields
        required = [_wire(name, body) for name, field in names.items() if field.is_required()]
        others = [_wire(name, body) for name, field in names.items() if not field.is_required()]
        out.append(f"**`{path}`**: {summary}.\n")
        if required:
            out.append(f"- has to have: {', '.join(required)}")
        out.append(f"- may have: {', '.join(others)}\n" if others else "")
    return "\n".join(out)


def _wire(name: str, body: type[BaseModel]) -> str:
    return f"`{body.model_fields[name].alias or name}`"


PARTS: dict[str, Callable[[], str]] = {
    "drafters": drafters,
    "rooms": rooms,
    "verbs": verbs,
    "options": options,
    "variables": variables,
    "engine-settings": engine_settings,
    "limits": limits,
    "errors": error_classes,
    "statuses": statuses,
    "metrics": metric_names,
    "fields": request_fields,
}


def made(text: str) -> str:
    """The page with every part as the code has it now. Raises KeyError for a part that nobody makes."""
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]().strip()}\n\n{found[4]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; say what is stale")
    check = parser.parse_args().check
    stale: list[Path] = []
    for page in sorted(DOCS.rglob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = made(old)
        if new != old:
            stale.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
    for name, drawn in pictures((DOCS / "benchmarks.md").read_text(encoding="utf-8")).items():
        path = DOCS / "pictures" / name
        if not path.exists() or path.read_text(encoding="utf-8") != drawn:
            stale.append(path)
            if not check:
                path.write_text(drawn, encoding="utf-8")
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is stale; run python scripts/make_pages.py' if check else 'written'}", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    assert Path(hasten.__file__).is_relative_to(ROOT), "another Hasten than that of this repository would be described"
    sys.exit(main())
