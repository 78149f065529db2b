"""Where models lie, what belongs to them, and that nothing else is ever removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hasten.core.errors import ConfigError, ModelError
from hasten.model import storage


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))


def put(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert storage.home() == tmp_path / "home"
    monkeypatch.setenv("HASTEN_HOME", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.home() == tmp_path / "x"
    monkeypatch.setenv("HASTEN_HOME", "relative")
    with pytest.raises(ConfigError, match="absolute"):
        storage.home()
    monkeypatch.setenv("HASTEN_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if os.uname().sysname == "Linux":
        assert storage.home() == tmp_path / "cache" / "hasten"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert storage.home() == tmp_path / ".cache" / "hasten"


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "/a", "a\\b", "a\0", "..a", "a..b", "-a", ".a", "é"])
def test_conversions_cannot_escape(bad: str) -> None:
    with pytest.raises(ModelError):
        storage.converted_path(bad, "int8")
    with pytest.raises(ModelError):
        storage.converted_path("ab", bad)


def convert(source: Path, fingerprint: str) -> Path:
    path = put(storage.converted_path(fingerprint, "int8"), 100)
    storage.record_conversion(path, source)
    return path


def test_conversions_are_found_by_their_source(tmp_path: Path) -> None:
    one, two = put(tmp_path / "one.gguf", 1), put(tmp_path / "two.gguf", 1)
    assert storage.conversions_of(one) == []
    mine, other = convert(one, "abc"), convert(two, "abcd")
    left = put(mine.with_name(mine.name + ".123.tmp"), 5)
    (storage.converted_directory() / "broken.json").write_bytes(b"[" * 5000)
    (storage.converted_directory() / "list.json").write_text("[]")
    (storage.converted_directory() / "other.json").write_text(json.dumps({"source": 3}))
    assert storage.conversions_of(tmp_path / "x" / ".." / "one.gguf") == [mine.with_suffix(".json"), mine, left]
    what = storage.removal(None, one)
    assert what.bytes == 100 + 5 + mine.with_suffix(".json").stat().st_size
    storage.remove(what)
    assert storage.conversions_of(one) == []
    assert one.exists()
    assert other.exists()


def test_removal_of_a_catalogue_model() -> None:
    path = put(storage.catalogue_path("tiny"), 1000)
    put(storage.partial_directory("tiny") / "deep" / "part.whl", 500)
    converted = convert(path, "f00")
    keep = put(storage.catalogue_path("tiny-2"), 10)
    what = storage.removal("tiny", path)
    assert what.bytes >= 1600
    storage.remove(what)
    assert not path.exists()
    assert not converted.exists()
    assert not storage.partial_directory("tiny").exists()
    assert keep.exists()
    assert storage.removal("tiny", path) == storage.Removal((), 0)


def test_removal_refuses_other_places_and_follows_no_links(tmp_path: Path) -> None:
    outside = put(tmp_path / "precious" / "file", 10)
    storage.gguf_directory().mkdir(parents=True)
    for path in (outside, outside.parent, storage.home(), storage.gguf_directory(), storage.gguf_directory() / ".." / "x"):
        with pytest.raises(ModelError, match="left alone"):
            storage.remove(storage.Removal((path,), 0))
    storage.catalogue_path("tiny").symlink_to(outside)
    storage.partial_directory("tiny").symlink_to(outside.parent)
    storage.remove(storage.removal("tiny", storage.catalogue_path("tiny")))
    assert outside.exists()
    assert list(storage.gguf_directory().iterdir()) == []


def test_lock_is_exclusive_or_refuses() -> None:
    with storage.exclusive("tiny", None), pytest.raises(ModelError, match="another process"), storage.exclusive("tiny", None):
        raise AssertionError("held twice")
    with storage.exclusive("tiny", None):
        pass
