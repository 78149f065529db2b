"""The verbs that keep models: ``pull``, ``ls``, ``show`` and ``rm``. Only ``show`` of a model that is here imports torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from hasten.cli.screen import answers, notes, print_table, printable, progress_on
from hasten.core.errors import InvalidRequest, ModelNotFound
from hasten.core.progress import Progress
from hasten.model import hub, storage
from hasten.model.catalogue import CATALOGUE, Entry, IndexPackages, Source, entry_of, on_disk, resolve


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def pull(names: tuple[str, ...]) -> None:
    """Fetch models and check them: names that 'hasten ls' shows, or hub repositories.

    A hub repository is written owner/name, with :FILE.gguf or a tag such as :Q4_K_M for one of its GGUF files, and @REVISION.
    An interrupted pull goes on where it stopped.
    """
    for name in names:
        if hub.parse(name) is None:
            entry_of(name)  # a wrong name is told before the first byte
    console = notes()

    def say(sentence: str) -> None:
        console.print(sentence)  # on the console of the bar, which makes room for it

    for name in names:
        try:
            with progress_on(console, f"fetching {name}") as progress:
                path = _pull(name, progress, say)
        except KeyboardInterrupt:
            say(f"What was fetched is kept; `hasten pull {name}` goes on from there.")
            raise
        click.echo(f"{name}: {path}")
        _tell_draft(name, names, say)


def _pull(name: str, progress: Progress, say: Callable[[str], None]) -> Path:
    entry = CATALOGUE.get(name)
    if entry is None:
        wanted = hub.parse(name)
        assert wanted is not None, "names are checked before"
        return hub.fetch(wanted, progress)
    from hasten.model import download

    say(f"{name}: {size(entry.bytes)}, licence: {entry.licence}")
    return download.pull(entry, progress, say)


def _tell_draft(name: str, names: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Where a model has one that drafts for it, and that is neither here nor asked for: it would be fetched at the first load."""
    entry = CATALOGUE.get(name)
    draft = CATALOGUE.get(entry.draft) if entry is not None and entry.draft else None
    if draft is not None and draft.name not in names and not on_disk(draft):
        what = f"{draft.name} ({size(draft.bytes)}) drafts for it"
        say(f"{what}; `hasten pull {draft.name}` fetches it now, else the first load does.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def ls(as_json: bool) -> None:
    """List the models you have and those you can pull."""
    if as_json:
        click.echo(json.dumps([_facts(entry) for entry in CATALOGUE.values()], indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NAME", "SIZE", "LICENCE", "ON DISK", "DRAFT"):
        table.add_column(title, justify="right" if title == "SIZE" else "left")
    for entry in CATALOGUE.values():
        here = "yes" if on_disk(entry) else "-"
        table.add_row(entry.name, size(entry.bytes), entry.licence, here, entry.draft or "-")
    print_table(answers(), table)


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show what a model is: where it comes from and, when it is here, its family, sizes and tensor types.

    NAME is a name of the catalogue, a folder, a .gguf file or a hub repository that was pulled.
    """
    entry = CATALOGUE.get(name)
    facts: dict[str, Any] = {"name": name} if entry is None else _facts(entry)
    if entry is None or on_disk(entry):
        path = resolve(name).path
        facts |= {"path": str(path), **_contents(path)}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        for number, line in enumerate(_lines(key, value)):
            click.echo(f"{'' if number else key.replace('_', ' '):<16}{printable(line)}")
    if entry is not None and "path" not in facts:
        _note(f"It is not on this disk; `hasten pull {name}` fetches it.")


@click.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(name: str, yes: bool) -> None:
    """Remove a model from this disk: its file, what an interrupted pull left, and weights converted from it.

    Of a folder, a file or a hub repository only the converted weights are removed, never the model itself.
    """
    what = _kept_of(name)  # where there is nothing, no lock is made
    if name not in CATALOGUE:
        confirm_removal(what, yes)
        return
    with storage.exclusive(name, None):
        confirm_removal(_kept_of(name), yes)


def _kept_of(name: str) -> storage.Removal:
    known = name in CATALOGUE
    what = storage.removal(name if known else None, storage.catalogue_path(name) if known else resolve(name).path)
    if not what.paths:
        raise ModelNotFound(f"Nothing of {name} is kept in {storage.home()}; a model that lies elsewhere is left alone.")
    return what


def confirm_removal(what: storage.Removal, yes: bool) -> None:
    """Show what goes, ask unless ``yes``, remove it and say how much that freed. A no ends the command with status 1.

    Raises InvalidRequest where there is nobody to ask.
    """
    for path in what.paths:
        _note(str(path))
    if not (yes or _agreed(f"Remove these and free {size(what.bytes)}?")):
        _note("Nothing was removed.")
        raise click.exceptions.Exit(1)
    storage.remove(what)
    click.echo(f"Freed {size(what.bytes)}.")


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort as problem:
        if isinstance(problem.__context__, EOFError):
            click.echo(err=True)  # ends the line of the question
            raise InvalidRequest("Standard input has no answer; give --yes to remove without being asked.") from problem
        raise


def _facts(entry: Entry) -> dict[str, Any]:
    facts = asdict(entry)
    facts["sources"] = [_source(source) for source in entry.sources]
    facts["on_disk"] = on_disk(entry)
    return facts


def _source(source: Source) -> str:
    if isinstance(source, IndexPackages):
        first, count = source.packages[0], len(source.packages)
        return f"Python package index: {first}" if count == 1 else f"Python package index: {first} to {source.packages[-1]}"
    return f"hub: {source.repository}/{source.filename}"


def _contents(path: Path) -> dict[str, Any]:
    """What the file itself says: its description, how many weights it has, and how many tensors lie in which type."""
    from hasten.model.loaders import open_source

    source = open_source(path)
    types: Counter[str] = Counter()
    stored = 0
    for name in source.names():
        types[source.stored_dtype(name)] += 1
        weights = 1
        for extent in source.shape(name):
            weights *= extent
        stored += weights
    found: dict[str, Any] = {"stored_weights": stored, "tensor_types": dict(types.most_common())}
    return found | {"precision_file": _precision_file(source), "description": asdict(source.description)}


def _precision_file(source: Any) -> str:
    """What ``--precision file`` does with this model."""
    from hasten.core.errors import ConfigError
    from hasten.model.linear_file import block_source, tensors_without_codes

    try:
        others = tensors_without_codes(block_source(source))
    except ConfigError as problem:
        return f"no: {problem}"
    if not others:
        return "every matrix with its own codes"
    named = ", ".join(f"{name} ({kind})" for name, kind in sorted(others.items()))
    return f"every matrix with its own codes but {named}: an embedding table stays in floats, projections become int8"


def _lines(key: str, value: Any) -> list[str]:
    """A fact as ``show`` prints it; nothing for what there is not."""
    if value in (None, "", [], {}):
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, list):
        return [str(item) for item in value]
    if key == "bytes":
        return [f"{value} ({size(value)})"]
    if key == "description":
        shown = ("family", "layers", "hidden_size", "heads", "kv_heads", "head_dim", "vocabulary_size", "context_length")
        return [f"{name.replace('_', ' ')} {value[name]}" for name in shown]
    if isinstance(value, dict):
        return [", ".join(f"{count} {name}" for name, count in value.items())]
    return [f"{value:,}" if isinstance(value, int) else str(value)]


def size(count: int) -> str:
    """Bytes as a person reads them: 98 MB, 1.1 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count} bytes"


def _note(sentence: str) -> None:
    notes().print(sentence)
