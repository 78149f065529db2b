"""The code blocks of README and docs are run: as they stand, on tiny models that lie where the catalogue's models would lie.

What is quick runs in every test run. Of slower verbs the options are checked in every run, and they are run with ``-m slow``, as
are README and quickstart on the real smallest model.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import pytest

from doc_blocks import LANGUAGES, PAGES, Block, all_blocks, blocks
from hasten.cli.main import cli, run
from hasten.core.errors import ConfigError
from hasten.draft.recycling import RecyclingDrafter
from hasten.model import storage
from hasten.model.catalogue import CATALOGUE
from real import model_path, shared_data
from serving import running, write_model

QUICK = ("generate", "chat", "ls", "show", "roofline", "pull")
SHELL = [block for block in all_blocks("sh") if block.runs]
PYTHON = [block for block in all_blocks("python") if block.runs]
FIRST_PAGES = ("README.md", "docs/index.md", "docs/quickstart.md")
WALK = "docs/adding-a-drafter.md"
SERVED = "http://127.0.0.1:8000"


def named(block: Block) -> str:
    return block.place


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HASTEN_HOME with a tiny model for every name of the catalogue."""
    home = tmp_path_factory.mktemp("home")
    (home / "gguf").mkdir()
    for seed, name in enumerate(CATALOGUE):
        write_model(home / "gguf" / f"{name}.gguf", seed)
    return home


@pytest.fixture
def place(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the pages mention, and the tiny models behind the catalogue's names."""
    for name, entry in CATALOGUE.items():
        content = (store / "gguf" / f"{name}.gguf").read_bytes()
        monkeypatch.setitem(CATALOGUE, name, replace(entry, bytes=len(content), sha256=sha256(content).hexdigest()))
    monkeypatch.setenv("HASTEN_HOME", str(store))
    return with_files(tmp_path, monkeypatch)


def with_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prompts = "".join(json.dumps({"prompt": f"Count to {count}."}) + "\n" for count in (3, 5))
    for name in ("prompts.jsonl", "mine.jsonl"):
        (folder / name).write_text(prompts, encoding="utf-8")
    for name in ("notes.txt", "handbook.txt"):
        (folder / name).write_text("The quick brown fox jumps over the lazy dog. " * 400, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def hasten(words: list[str], block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one line of a block as it stands; it has to end well."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    assert run(words[1:]) == 0, f"{block.place}: {' '.join(words)}"


def check_options(words: list[str], block: Block) -> None:
    """Whether the verb and all options of a line exist and have values of their kind; nothing is run."""
    command: click.Command = cli
    context = click.Context(cli, info_name="hasten")
    rest = words[1:]
    while isinstance(command, click.Group):
        assert rest, f"{block.place}: {' '.join(words)} names no verb"
        found = command.get_command(context, rest[0])
        assert found is not None, f"{block.place}: there is no verb {rest[0]}"
        command, rest = found, rest[1:]
    if "--help" not in rest:
        command.make_context(words[1], rest)


def test_there_are_blocks_to_run() -> None:
    assert len(SHELL) > 15
    assert len(PYTHON) > 4
    assert {block.page for block in SHELL + PYTHON} >= {"README.md", "docs/quickstart.md", "docs/serving.md", WALK}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language_and_why_it_is_not_run(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place} has the language {block.language!r}; allowed are {LANGUAGES}"
        assert block.reason is None or len(block.reason) > 10, f"{block.place} gives no reason"
        if block.language == "json":
            json.loads(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("block", SHELL, ids=named)
def test_shell_blocks(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Quick verbs are run; of the others, which have a slow test below, every option has to exist."""
    if block.page == WALK:
        install_walk(place, monkeypatch)
    for words in block.commands():
        assert words[0] == "hasten", f"{block.place}: {words[0]} cannot be run here; say so in a marker"
        check_options(words, block)
        if words[1] in QUICK and "--check" not in words and "here" not in words:
            hasten(words, block, monkeypatch)
            if words[1] == "generate":
                assert capsys.readouterr().out.strip(), f"{block.place} answers nothing"


@pytest.mark.slow
@pytest.mark.parametrize("block", SHELL, ids=named)
def test_shell_blocks_of_slow_verbs(block: Block, place: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_SHARED_DATA", str(shared_data("humaneval_dev.jsonl").parent))
    if block.page == WALK:
        install_walk(place, monkeypatch)
    for words in block.commands():
        if words[1] == "serve":
            start_and_stop(words, store)
        elif words[1] not in QUICK:
            hasten(words, block, monkeypatch)


def start_and_stop(words: list[str], store: Path) -> None:
    """A line of ``hasten serve`` listens and ends well; its models are the tiny files, its port a free one."""
    rest = words[2:]
    if "--new-key" in rest:
        assert run(words[1:]) == 0
        return
    models: list[str] = []
    while "-m" in rest:
        at = rest.index("-m")
        alias, _, name = rest.pop(at + 1).rpartition("=")
        models.append(f"{alias or name}={store / 'gguf' / name}.gguf")
        rest.pop(at)
    with running(*rest, home=store, models=tuple(models)) as server:
        assert server.get("/health/live").status_code == 200


@pytest.fixture(scope="module")
def served(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that calls a tiny model by the name that the pages use."""
    path = store / "gguf" / "smollm2-135m.gguf"
    with running(home=tmp_path_factory.mktemp("served"), models=(f"smollm2-135m={path}",)) as server:
        yield server.url


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_python_blocks(block: Block, place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.page == WALK:
        install_walk(place, monkeypatch)
    text = block.text
    if SERVED in text:
        text = text.replace(SERVED, request.getfixturevalue("served"))
    execute(text, block)


def execute(text: str, block: Block) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "documentation"}
    exec(compile("\n" * block.line + text, block.page, "exec"), names)
    return names


def install_walk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pip install`` of the walk-through's files leaves behind: a module, and a distribution with its entry point."""
    files = {block.file: block.text for block in blocks(WALK) if block.file}
    site = folder / "site-packages"
    about = site / "hasten_again-0.1.dist-info"
    about.mkdir(parents=True)
    (site / "again.py").write_text(files["again.py"], encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    (about / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in rows.items())
        for group, rows in project["entry-points"].items()
    )
    (about / "entry_points.txt").write_text(points, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "again", raising=False)


def test_who_is_named_beside_auto_is_made_as_named(place: Path) -> None:
    from hasten import LLM

    with LLM("smollm2-135m", draft="auto+trie+recycling(most_rows=7)") as llm:
        drafters = llm.engine.drafting.drafters
        assert [drafter.name for drafter in drafters] == ["prediction", "suffix", "recycling", "trie"]
        assert isinstance(drafters[2], RecyclingDrafter)
        assert drafters[2].rows._most_rows == 7
    with pytest.raises(ConfigError, match="auto takes no arguments"):
        LLM("smollm2-135m", draft="auto(most_rows=7)")


def test_the_walk_through_makes_a_drafter_that_guesses_right_sometimes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own check of equal tokens runs above; here the drafter has to be asked, and to be wrong without harm."""
    from hasten import LLM, SamplingParams
    from hasten.core.config import SpeculationParams

    install_walk(place, monkeypatch)
    params = SamplingParams(max_tokens=64, ignore_eos=True)
    prompt = "one two three one two three one"
    with LLM("smollm2-135m", draft="none") as plain:
        expected = plain.generate(prompt, params)[0]
    with LLM("smollm2-135m", draft="again(length=3)") as llm:
        found = llm.generate(prompt, params, speculation=SpeculationParams(mode="on"))[0]
    assert found.tokens == expected.tokens
    assert found.speculation.by_drafter["again"].drafted > 0
    assert found.speculation.by_drafter["again"].accepted < found.speculation.by_drafter["again"].drafted


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("block", [block for block in SHELL + PYTHON if block.page in FIRST_PAGES], ids=named)
def test_first_pages_on_the_real_smallest_model(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    path = model_path("smollm2-135m")
    home = tmp_path / "home"
    (home / "gguf").mkdir(parents=True)
    for found in path.parent.glob("*.gguf"):
        (home / "gguf" / found.name).symlink_to(found)
    monkeypatch.setenv("HASTEN_HOME", str(home))
    with_files(tmp_path, monkeypatch)
    if block.language == "sh":
        for words in block.commands():
            wanted = [word for word in words if word in CATALOGUE]
            if words[1] not in ("serve", "pull") and all(storage.catalogue_path(name).exists() for name in wanted):
                hasten(words, block, monkeypatch)
    elif SERVED in block.text:
        with running(home=home, models=("smollm2-135m",)) as server:
            execute(block.text.replace(SERVED, server.url), block)
    else:
        execute(block.text, block)


def test_a_block_that_is_wrong_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The opponent's pages: each has to be found out."""
    (wrong_option,) = blocks("x.md", "```sh\nhasten generate --promt hi\n```\n")
    with pytest.raises(click.UsageError):
        check_options(wrong_option.commands()[0], wrong_option)
    (wrong_verb,) = blocks("x.md", "```sh\nhasten answer hi\n```\n")
    with pytest.raises((AssertionError, click.UsageError)):
        check_options(wrong_verb.commands()[0], wrong_verb)
    (wrong_value,) = blocks("x.md", "```sh\nhasten generate -m smollm2-135m --prompt hi --draft sufix\n```\n")
    with pytest.raises(AssertionError, match="sufix"):
        hasten(wrong_value.commands()[0], wrong_value, monkeypatch)
    (wrong_name,) = blocks("x.md", "```python\nfrom hasten import LMM\n```\n")
    with pytest.raises(ImportError):
        execute(wrong_name.text, wrong_name)
    with pytest.raises(ValueError, match="nobody closes"):
        list(blocks("x.md", "```sh\nhasten ls\n"))


def test_scripts_that_pages_name_are_there() -> None:
    """Every ``scripts/...``, ``benchmarks/...`` and ``tests/...`` file that a page names exists."""
    root = Path(__file__).resolve().parent.parent
    missing: list[str] = []
    for page in (*PAGES, "CHANGELOG.md", "SECURITY.md"):
        text = (root / page).read_text(encoding="utf-8")
        for name in re.findall(r"\b(?:scripts|benchmarks|tests|deploy)/[\w./-]+\.\w+", text):
            if not (root / name).exists():
                missing.append(f"{page}: {name}")
    assert not missing


def test_every_benchmark_can_be_imported() -> None:
    """A number's script has to run: at least everything that it imports is there."""
    root = Path(__file__).resolve().parent.parent
    names = sorted(path.stem for path in (root / "benchmarks").glob("*.py"))
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", program, *names], cwd=root / "benchmarks", capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_make_pages_finds_nothing_stale() -> None:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "scripts/make_pages.py", "--check"], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
