"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from hasten.core.replacement import ABANDONED_AFTER_S, Replacement, refusal


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "deep" / "file.json"
    for content in (b"one", b"two"):
        with Replacement(path, durable=durable) as replacement:
            replacement.file.write(content)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
        assert names(path.parent) == ["file.json"]


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), Replacement(path):
        raise RuntimeError

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"), Replacement(path, durable=True) as replacement:
        replacement.file.write(b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "check its permissions")],
)
def test_a_refusal_says_what_to_do(number: int, fix: str) -> None:
    said = refusal(Path("/a/b"), OSError(number, os.strerror(number)))
    assert said == f"/a/b cannot be written ({os.strerror(number)}); {fix}, or set HASTEN_HOME to a folder that can be written."


def test_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first, second = Replacement(path), Replacement(path)
    first.file.write(b"first")
    second.file.write(b"2nd")
    second.finish()
    assert path.read_bytes() == b"2nd"
    first.finish()
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_what_killed_writers_left_is_removed_after_a_while(tmp_path: Path) -> None:
    path = tmp_path / "a[1].weights"
    left, fresh, other = (tmp_path / name for name in ("a[1].weights.0123.tmp", "a[1].weights.77.tmp", "b.weights.0123.tmp"))
    for file in (left, fresh, other):
        file.write_bytes(b"x")
    long_ago = time.time() - ABANDONED_AFTER_S - 60
    for file in (left, other):
        os.utime(file, (long_ago, long_ago))
    with Replacement(path) as replacement:
        replacement.file.write(b"y")
    assert names(tmp_path) == sorted([path.name, fresh.name, other.name])


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_private_files_are_the_owners(tmp_path: Path) -> None:
    with Replacement(tmp_path / "open"), Replacement(tmp_path / "deep" / "private", private=True):
        pass
    assert stat.S_IMODE((tmp_path / "deep" / "private").stat().st_mode) == 0o600
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o666 & ~umask
