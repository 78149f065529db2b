"""Damaged files are set aside by one function, whoever finds them: their names, the words, and where the disk refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.control import store
from hasten.core.damaged import free_name, set_aside
from hasten.draft.hierarchy import HierarchyDrafter
from hasten.draft.output_store import COMPANIONS, OutputStore
from hasten.draft.trim import load as load_trim
from hasten.model.speculator import load as load_speculator
from test_trim_choice import Words


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_one_name_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.json"
    for number in range(2):
        path.write_text(str(number))
        assert set_aside(path, "a.json is damaged", then=" and made anew")
    assert contents(tmp_path) == {"a.damaged": "1"}
    assert caplog.messages == ["a.json is damaged; it is set aside as a.damaged and made anew."] * 2


def test_a_free_name_replaces_nothing_and_companions_go_along(tmp_path: Path) -> None:
    for name in ("m", "m-wal", "m-shm", "m-other", "m.damaged-1"):
        (tmp_path / name).write_text(name)
    assert free_name(tmp_path / "m") == tmp_path / "m.damaged-2"
    assert set_aside(tmp_path / "m", "m is damaged", free_name(tmp_path / "m"), companions=COMPANIONS)
    assert contents(tmp_path) == {
        "m.damaged-1": "m.damaged-1", "m.damaged-2": "m", "m.damaged-2-wal": "m-wal", "m.damaged-2-shm": "m-shm",
        "m-other": "m-other",
    }  # fmt: skip


FINDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "learnt": (store.read, "x.json.damaged"),
    "speculator": (lambda path: load_speculator(path, "model", 8, 8), "x.damaged"),
    "choice of ids": (lambda path: load_trim(path, "draft", Words(100)), "x.damaged"),
    "database": (lambda path: HierarchyDrafter(statistics=path), "x.json.damaged-1"),
    "past outputs": (lambda path: OutputStore(path, 100, 100), "x.json.damaged-1"),
}


@pytest.mark.parametrize("finder", FINDERS)
def test_whoever_finds_one_says_so_once_and_each_keeps_its_name(
    finder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    find, name = FINDERS[finder]
    path = tmp_path / "x.json"
    path.write_text("nothing of ours " * 10)
    find(path)
    assert (tmp_path / name).read_text() == "nothing of ours " * 10
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"; it is set aside as {name}" in caplog.text
    assert str(path) in caplog.text


@pytest.mark.parametrize("finder", FINDERS)
def test_where_the_disk_refuses_it_is_said_once_and_nothing_else_fails(
    finder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_text("nothing of ours " * 10)

    def refuse(self: Path, target: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    FINDERS[finder][0](path)
    assert contents(tmp_path) == {"x.json": "nothing of ours " * 10}
    assert len(caplog.records) == 1
    assert "it cannot be set aside (Read-only file system), so remove it yourself." in caplog.text
