"""The verbs pull, ls, show and rm, as a user types them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from hasten.cli import models
from hasten.cli.draft_forget import forget
from hasten.control import store
from hasten.core.errors import HastenError, InvalidRequest, ModelError, ModelNotFound
from hasten.core.progress import Progress
from hasten.draft.kept import memory_path
from hasten.model import catalogue, download, hub, storage
from hasten.model.catalogue import CATALOGUE
from hasten.model.description import ModelDescription

DESCRIPTION = ModelDescription(
    family="llama",
    vocabulary_size=32,
    hidden_size=8,
    intermediate_size=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    context_length=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)


class FakeSource:
    description = DESCRIPTION

    def names(self) -> set[str]:
        return {"embedding", "final_norm"}

    def shape(self, name: str) -> tuple[int, ...]:
        return {"embedding": (32, 8), "final_norm": (8,)}[name]

    def stored_dtype(self, name: str) -> str:
        return {"embedding": "q4_k", "final_norm": "f32"}[name]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    for name, entry in CATALOGUE.items():
        monkeypatch.setitem(CATALOGUE, name, dataclasses.replace(entry, bytes=entry.bytes // 1_000_000))
    return tmp_path / "home"


@pytest.fixture
def fake_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hasten.model.loaders", SimpleNamespace(open_source=lambda path: FakeSource()))  # type: ignore[arg-type]


def have(name: str) -> Path:
    path = storage.catalogue_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(CATALOGUE[name].bytes))
    return path


def invoke(command: object, *arguments: str, answer: str | None = None) -> Result:
    result = CliRunner().invoke(command, arguments, input=answer)  # type: ignore[arg-type]
    if isinstance(result.exception, HastenError):
        raise result.exception
    return result


def test_ls() -> None:
    have("qwen2.5-coder-1.5b")
    lines = invoke(models.ls).stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "LICENCE", "ON", "DISK", "DRAFT"]
    assert [line.split()[0] for line in lines[1:]] == list(CATALOGUE)
    assert next(line for line in lines if "1.5b" in line).split()[-2:] == ["yes", "qwen2.5-coder-0.5b"]
    listed = json.loads(invoke(models.ls, "--json").stdout)
    assert {entry["name"]: entry["on_disk"] for entry in listed} == {name: name == "qwen2.5-coder-1.5b" for name in CATALOGUE}
    assert all(isinstance(source, str) for entry in listed for source in entry["sources"])


def test_show_what_is_not_here() -> None:
    result = invoke(models.show, "gemma-3-270m")
    assert "https://ai.google.dev/gemma/terms" in result.stdout
    assert "`hasten pull gemma-3-270m` fetches it" in result.stderr
    assert "description" not in json.loads(invoke(models.show, "gemma-3-270m", "--json").stdout)
    with pytest.raises(ModelNotFound, match="did you mean"):
        invoke(models.show, "gemma-3")


@pytest.mark.usefixtures("fake_loaders")
def test_show_what_is_here(tmp_path: Path) -> None:
    path = have("smollm2-135m")
    text = invoke(models.show, "smollm2-135m").stdout
    for words in ("context length 64", "layers 2", "1 q4_k", "1 f32", str(path), "134,515,008", "on disk         yes"):
        assert words in text
    shown = json.loads(invoke(models.show, "smollm2-135m", "--json").stdout)
    assert shown["tensor_types"] == {"q4_k": 1, "f32": 1}
    assert shown["stored_weights"] == 32 * 8 + 8
    assert shown["description"]["family"] == "llama"
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"x")
    assert json.loads(invoke(models.show, str(mine), "--json").stdout)["path"] == str(mine)


def test_pull_tells_licence_and_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(entry: catalogue.Entry, progress: Progress, say: download.Say) -> Path:
        progress(entry.name, 1, 2)
        say("The next source is tried.")
        return tmp_path / entry.name

    monkeypatch.setattr(download, "pull", fetch)
    result = invoke(models.pull, "smollm2-135m", "gemma-3-270m")
    assert result.stdout == f"smollm2-135m: {tmp_path}/smollm2-135m\ngemma-3-270m: {tmp_path}/gemma-3-270m\n"
    assert "licence: Gemma terms of use" in result.stderr
    assert "next source" in result.stderr


def test_pull_names_the_model_that_drafts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    monkeypatch.setattr(download, "pull", lambda entry, *_: tmp_path / entry.name)
    hint = "`hasten pull qwen2.5-coder-0.5b` fetches it now"
    assert hint in " ".join(invoke(models.pull, "qwen2.5-coder-1.5b").stderr.split())
    assert hint not in " ".join(invoke(models.pull, "qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b").stderr.split())


def test_pull_of_a_hub_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "fetch", lambda name, progress: tmp_path / str(name))
    assert invoke(models.pull, "some/model:Q4_0").stdout == f"some/model:Q4_0: {tmp_path}/some/model:Q4_0\n"


def test_wrong_name_stops_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "pull", lambda *_: pytest.fail("downloaded"))
    for name in ("smollm", "../x", "./gguf/x", "/etc/passwd"):
        with pytest.raises(ModelNotFound):
            invoke(models.pull, "smollm2-135m", name)


def test_rm_asks_says_what_and_frees() -> None:
    path = have("qwen2.5-coder-0.5b")
    converted = storage.converted_path("abc", "int8")
    converted.parent.mkdir(parents=True)
    converted.write_bytes(bytes(9))
    storage.record_conversion(converted, path)
    with pytest.raises(InvalidRequest, match="give --yes"):
        invoke(models.rm, "qwen2.5-coder-0.5b", answer="")
    result = invoke(models.rm, "qwen2.5-coder-0.5b", answer="n\n")
    assert result.exit_code == 1
    assert "Nothing was removed." in result.stderr
    assert path.exists()
    assert converted.exists()
    assert str(path) in result.stderr
    assert str(converted) in result.stderr
    result = invoke(models.rm, "qwen2.5-coder-0.5b", answer="y\n")
    assert result.stdout.startswith("Freed ")
    assert not path.exists()
    assert not converted.exists()
    with pytest.raises(ModelNotFound, match="Nothing of qwen2"):
        invoke(models.rm, "qwen2.5-coder-0.5b", "--yes")


def test_rm_never_touches_models_that_lie_elsewhere(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"x")
    for name in ("mine.gguf", str(tmp_path)):
        with pytest.raises(ModelNotFound, match="left alone"):
            invoke(models.rm, name, "--yes")
    converted = storage.converted_path("abc", "int8")
    converted.parent.mkdir(parents=True)
    converted.write_bytes(bytes(9))
    storage.record_conversion(converted, mine)
    invoke(models.rm, "mine.gguf", "--yes")
    assert mine.exists()
    assert not converted.exists()
    for name in ("/etc/passwd", "..", "../..", "/", "some/model"):
        with pytest.raises(ModelNotFound):
            invoke(models.rm, name, "--yes")


def test_forget_removes_what_was_learnt_and_no_model() -> None:
    model = have("smollm2-135m")
    for words in ([], ["--yes"]):
        result = invoke(forget, *words)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.endswith("; there is nothing to forget.\n")
    kept = [
        memory_path(),
        storage.trim_path("abc", "def"),
        store.folder() / "cost.json",
        storage.drafts_directory() / "x-model.ngrams",
    ]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(7))
    result = invoke(forget, answer="n\n")
    assert result.exit_code == 1
    assert all(path.exists() and str(path) in result.stderr for path in kept)
    assert invoke(forget, "--yes").stdout == "Freed 28 bytes.\n"
    assert not any(path.exists() for path in kept)
    assert model.exists()


def test_rm_refuses_while_a_pull_runs() -> None:
    path = have("smollm2-135m")
    with storage.exclusive("smollm2-135m", None), pytest.raises(ModelError, match="another process"):
        invoke(models.rm, "smollm2-135m", "--yes")
    assert path.exists()


@pytest.mark.parametrize("verb", ["pull", "rm"])
def test_a_home_that_cannot_be_written_is_told_with_the_fix(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "x.lock")

    have("smollm2-135m")
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    said = rf"{storage.gguf_directory()} cannot be written \(Read-only file system\); check .* set HASTEN_HOME to"
    with pytest.raises(ModelError, match=said):
        invoke(getattr(models, verb), "smollm2-135m", *(["--yes"] if verb == "rm" else []))


def test_rm_of_nothing_makes_nothing(home: Path) -> None:
    with pytest.raises(ModelNotFound, match="Nothing of smollm2"):
        invoke(models.rm, "smollm2-135m", "--yes")
    assert not home.exists()


def test_what_may_not_be_looked_at_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    have("smollm2-135m")
    stat = os.stat

    def refuse(path: object, *rest: object, **named: object) -> object:
        if str(path).endswith(".gguf"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)
    assert not catalogue.on_disk(CATALOGUE["smollm2-135m"])


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (98_362_432, "98 MB"), (1_117_320_768, "1.1 GB")])
def test_size(count: int, text: str) -> None:
    assert models.size(count) == text


def test_ls_imports_no_torch() -> None:
    code = "import sys; from hasten.cli.main import run; run(['ls']); sys.exit('torch' in sys.modules or 'gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=dict(os.environ)).returncode == 0
