"""What a name stands for, where things lie, and that no name leads anywhere else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from fake_hub import COMMIT, FakeServer, Fault, serving
from hasten.core.errors import (
    CorruptModel,
    DownloadError,
    HastenError,
    ModelError,
    ModelNotFound,
    UnsupportedModel,
)
from hasten.model import catalogue, download, hub, storage
from hasten.model.catalogue import CATALOGUE, DEFAULT, IndexPackages, entry_of, on_disk, resolve
from hasten.model.hub import HubFile, HubName, parse
from hasten.model.transfer import DiskError, Unreachable

REPOSITORY = "some.one/a_model-1.5B"
SNAPSHOT = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"[]",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
    "README.md": b"no",
    "pytorch_model.bin": b"never",
    "model.pt": b"never",
    "modeling.py": b"never",
    "consolidated.safetensors": b"the same again",
    "nested/model.safetensors": b"no",
}
WANTED = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running


# entries


def test_entries_are_complete() -> None:
    assert DEFAULT in CATALOGUE
    for name, entry in CATALOGUE.items():
        assert name == entry.name == storage._safe(name)
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.bytes > 1e7 < entry.parameters
        assert entry.sources
        assert entry.draft is None or entry.draft in CATALOGUE
        assert entry.licence == "Apache-2.0" or "https://" in entry.licence_note
        for source in entry.sources:
            if isinstance(source, IndexPackages):
                assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package) for package in source.packages)
            else:
                assert parse(source.repository) == HubName(source.repository)
    assert CATALOGUE["qwen2.5-coder-1.5b"].draft == "qwen2.5-coder-0.5b"


def test_entries_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        CATALOGUE[DEFAULT].sha256 = ""  # type: ignore[misc]


# names


def put(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_catalogue_name() -> None:
    entry = CATALOGUE["qwen2.5-coder-1.5b"]
    with pytest.raises(ModelNotFound, match=r"run `hasten pull qwen2.5-coder-1.5b` first"):
        resolve(entry.name)
    path = put(storage.catalogue_path(entry.name), entry.bytes - 1)
    assert not on_disk(entry)
    with pytest.raises(CorruptModel, match=r"hasten pull qwen2.5-coder-1.5b"):
        resolve(entry.name)
    put(path, entry.bytes)
    assert on_disk(entry)
    assert resolve(entry.name) == catalogue.ResolvedModel(entry.name, path, "qwen2.5-coder-0.5b")


def test_fetch_goes_through_pull(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    monkeypatch.setattr(download, "pull", lambda *arguments: asked.append(arguments) or tmp_path)

    def progress(label: str, done: int, total: int) -> None:
        pass

    assert resolve(DEFAULT, fetch=True, progress=progress).path == tmp_path
    assert asked == [(CATALOGUE[DEFAULT], progress)]


def test_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path / "some" / "model.GGUF", 1)
    assert resolve("some/model.GGUF").path == file
    assert resolve(str(tmp_path / "some")) == catalogue.ResolvedModel(str(tmp_path / "some"), file)
    put(tmp_path / "some" / "config.json", 1)
    assert resolve(str(tmp_path / "some")).path == tmp_path / "some"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/some").path == tmp_path / "some"
    for name in ("a.gguf", "b.gguf"):
        put(tmp_path / "two" / name, 1)
    with pytest.raises(ModelNotFound, match=r"holds 2 GGUF files \(a.gguf, b.gguf\); name the one"):
        resolve("two")
    (tmp_path / "sha256-abc").write_bytes(b"GGUF and more")
    assert resolve("sha256-abc").path == tmp_path / "sha256-abc"
    put(tmp_path / "model.bin", 1)
    with pytest.raises(ModelNotFound, match="is not a model"):
        resolve("model.bin")


@pytest.mark.parametrize("name", ["smolm2-135m", "SMOLLM2-135M", "smollm2-135m "])
def test_misspelt_name_offers_the_nearest(name: str) -> None:
    with pytest.raises(ModelNotFound, match="did you mean 'smollm2-135m'"):
        resolve(name)
    with pytest.raises(ModelNotFound, match="did you mean 'smollm2-135m'"):
        entry_of(name)


def test_strange_names_end_in_one_sentence() -> None:
    for name in (
        "",
        " ",
        "\0",
        "~nobody-of-that-name/x",
        "x" * 100_000,
        "../../etc/passwd.gguf",
        "a/b/c/d",
        "a\nb",
        "ünï/cödé",
    ):
        with pytest.raises(HastenError) as caught:
            resolve(name)
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)


@given(st.text(alphabet=st.sampled_from("ab./-_:@~\\ \0é"), max_size=24))
def test_no_name_leaves_the_directories(name: str) -> None:
    for make in (storage.catalogue_path, storage.partial_directory):
        try:
            path = make(name)
        except ModelError:
            continue
        assert path.parent == storage.gguf_directory()
        assert Path(os.path.normpath(path)) == path
    wanted = parse(name)
    if wanted is not None:
        root = Path("/hub")
        for part in (wanted.repository.replace("/", "--"), wanted.file or "x", wanted.revision):
            assert (root / part).is_relative_to(root)
            assert Path(os.path.normpath(root / part)).is_relative_to(root)
            assert Path(os.path.normpath(root / part)) != root


def test_hub_names() -> None:
    assert parse("a/b") == HubName("a/b")
    assert parse("a/b:x-Q4_K_M.gguf@v1.0") == HubName("a/b", "x-Q4_K_M.gguf", "v1.0")
    assert parse("a/b:Q4_K_M") == HubName("a/b", "Q4_K_M")
    assert parse("a/b@refs/pr/1") == HubName("a/b", None, "refs/pr/1")
    assert parse("a/b:sub/x.gguf") == HubName("a/b", "sub/x.gguf")
    for address in ("hf.co/", "huggingface.co/", "https://huggingface.co/", "https://hf.co/", "http://www.huggingface.co/"):
        assert parse(f"{address}a/b:Q4_K_M") == HubName("a/b", "Q4_K_M")
    for name in (
        "a",
        "a/b/c",
        "/a/b",
        "a/b:",
        "a/b@",
        "a/..",
        "../b",
        "a/b@../x",
        "a/b:../x",
        "a/b:/x",
        "a/b@/x",
        "a--b/c",
        "https://hf.co/a",
        "https://elsewhere.example/a/b",
        "hf.co//a/b",
        "a/b:x//y",
    ):
        assert parse(name) is None, name
    for text in ("a/b", "a/b:Q4_K_M@v1", "a/b@v1"):
        assert str(parse(text)) == text


# hub repositories


def test_snapshot_holds_weights_tokenizer_and_configuration_only(server: FakeServer, tmp_path: Path) -> None:
    server.add_repository(REPOSITORY, SNAPSHOT)
    with pytest.raises(ModelNotFound, match="hasten pull"):
        resolve(REPOSITORY)
    reports: list[tuple[str, int, int]] = []
    resolved = resolve(REPOSITORY, fetch=True, progress=lambda *report: reports.append(report))
    assert resolved.draft is None
    assert sorted(path.name for path in resolved.path.rglob("*")) == WANTED
    assert resolved.path.is_relative_to(tmp_path / "hub")
    assert (f"{REPOSITORY} 5/5", 7000, 7000) in reports
    asked = len(server.asked)
    assert resolve(REPOSITORY, fetch=True) == resolve(REPOSITORY) == resolved
    assert len(server.asked) == asked, "what is whole on the disk needs no network"
    for name in ("pytorch_model.bin", "modeling.py", "model.pt"):
        assert not any(request.path.endswith(name) for request in server.asked)


def test_sharded_snapshot_must_be_whole(server: FakeServer) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, shards[0]: b"1", shards[1]: b"2"}
    server.add_repository(REPOSITORY, files)
    folder = resolve(REPOSITORY, fetch=True).path
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    (folder / shards[1]).unlink()
    with pytest.raises(ModelNotFound):
        resolve(REPOSITORY)
    assert resolve(REPOSITORY, fetch=True).path == folder
    for content in (
        b"[]",
        b"{}",
        b"[" * 5000,
        b'{"weight_map": {"a": "../x"}}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": []}}',
    ):
        (folder / "model.safetensors.index.json").unlink()
        (folder / "model.safetensors.index.json").write_bytes(content)
        assert hub.cached(HubName(REPOSITORY)) is None


def test_gguf_files_by_name_and_by_tag(server: FakeServer) -> None:
    server.add_repository(REPOSITORY, {"m-Q4_K_M.gguf": b"4", "m-q8_0.gguf": b"8", "sub/m.Q2_K.gguf": b"2", "m-IQ4_K_M.gguf": b"i"})
    for name, content in (("m-q8_0.gguf", b"8"), ("q4_k_m", b"4"), ("Q8_0", b"8"), ("Q2_K", b"2"), ("iq4_k_m", b"i")):
        wanted = f"{REPOSITORY}:{name}"
        path = resolve(wanted, fetch=True).path
        assert path.read_bytes() == content
        assert path.suffix == ".gguf"
        assert resolve(wanted).path == path
    with pytest.raises(ModelNotFound, match=r"no GGUF file that matches 'Q5_K'; it has m-IQ4_K_M.gguf, m-Q4_K_M.gguf"):
        resolve(f"{REPOSITORY}:Q5_K", fetch=True)
    with pytest.raises(UnsupportedModel, match=f"such as {REPOSITORY}:m-IQ4_K_M.gguf"):
        resolve(REPOSITORY, fetch=True)


@pytest.mark.parametrize("name", ["m-Q4_K_M-00001-of-00003.gguf", "Q4_K_M"])
def test_files_in_parts_are_refused_before_they_are_fetched(server: FakeServer, name: str) -> None:
    parts = {f"m-Q4_K_M-0000{part}-of-00003.gguf": b"x" for part in (1, 2, 3)}
    server.add_repository(REPOSITORY, {**parts, "m-Q8_0.gguf": b"8"})
    with pytest.raises(UnsupportedModel, match="in several parts, which Hasten does not join"):
        resolve(f"{REPOSITORY}:{name}", fetch=True)
    assert resolve(f"{REPOSITORY}:Q8_0", fetch=True).path.read_bytes() == b"8"


def test_ambiguous_tag(server: FakeServer) -> None:
    server.add_repository(REPOSITORY, {"a-Q4_0.gguf": b"4", "b-Q4_0.gguf": b"8"})
    with pytest.raises(ModelNotFound, match="more than one GGUF file"):
        resolve(f"{REPOSITORY}:Q4_0", fetch=True)


def test_revision(server: FakeServer) -> None:
    server.add_repository(REPOSITORY, SNAPSHOT, revision="v2.0")
    folder = resolve(f"{REPOSITORY}@v2.0", fetch=True).path
    assert folder.name == COMMIT
    assert resolve(f"{REPOSITORY}@v2.0").path == resolve(f"{REPOSITORY}@{COMMIT}").path == folder
    with pytest.raises(ModelNotFound):
        resolve(REPOSITORY)


def test_hostile_listing_stays_inside(server: FakeServer, tmp_path: Path) -> None:
    server.add_repository(REPOSITORY, {"../../../../evil-Q4_0.gguf": b"x", "config.json": b"{}"})
    with pytest.raises(ModelNotFound, match="no GGUF file"):
        resolve(f"{REPOSITORY}:Q4_0", fetch=True)
    assert not list(tmp_path.rglob("evil*"))


def test_hostile_reference_in_the_cache(tmp_path: Path) -> None:
    root = tmp_path / "hub" / ("models--" + REPOSITORY.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "snapshots").mkdir()
    put(tmp_path / "hub" / "config.json", 1)
    put(tmp_path / "hub" / "model.safetensors", 1)
    for content in ("../..", "", ".", "/", COMMIT, "x" * 100):
        (root / "refs" / "main").write_text(content)
        assert hub.cached(HubName(REPOSITORY)) is None


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (403, ModelNotFound, "accept its licence"),
        (404, ModelNotFound, "no repository"),
        (500, DownloadError, "could not be reached"),
    ],
)
def test_what_the_hub_answers_is_told(server: FakeServer, status: int, kind: type[Exception], words: str) -> None:
    server.add_repository(REPOSITORY, SNAPSHOT)
    for path, route in server.routes.items():
        if path.startswith("/api/"):
            route.faults.extend([Fault(status=status)] * 3)
    with pytest.raises(kind, match=words):
        resolve(REPOSITORY, fetch=True)


def test_no_hub_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="check the network"):
        resolve(REPOSITORY, fetch=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE"):
        resolve(REPOSITORY, fetch=True)


def test_hub_model_needs_space(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.model import transfer

    server.add_repository(REPOSITORY, SNAPSHOT)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(DiskError, match="HF_HOME"):
        resolve(REPOSITORY, fetch=True)
    assert not any("/resolve/" in request.path for request in server.asked)


def test_hub_file_is_hashable() -> None:
    assert len({HubFile("a/b", "c"), HubFile("a/b", "c")}) == 1
