"""Where models lie on this disk, and what may be removed there. No torch.

    $HASTEN_HOME, else the user's cache directory (Linux: $XDG_CACHE_HOME/hasten or ~/.cache/hasten)
    ├── gguf/NAME.gguf                          a whole, checked catalogue model
    │   ├── NAME.partial/                       what an interrupted download left, and goes on from
    │   └── NAME.lock                           held while NAME is being downloaded
    ├── converted/FINGERPRINT-PRECISION.weights weights converted for this engine, with a .json that names their source;
    │                                           -calibrated before the dot: made by `hasten quantize`;
    │                                           .damaged for .weights: what was set aside
    ├── drafts/                                 past outputs, and what `hasten draft build` made (``draft.kept``)
    ├── learnt/                                 costs of rows, and which drafters were worth it (``control.store``)
    └── trimmed/DRAFT-VOCABULARY.json           which ids a draft model computes (``hasten draft trim``)

Files of hub repositories lie in huggingface_hub's own cache, shared with every program that uses it; Hasten never removes them.
Does not create anything unless said so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from hasten.core.errors import ConfigError, ModelError
from hasten.core.replacement import Replacement, refusal

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


def home() -> Path:
    """The directory that holds everything Hasten keeps. Raises ConfigError when HASTEN_HOME is not an absolute path."""
    chosen = os.environ.get("HASTEN_HOME", "")
    if not chosen:
        return platformdirs.user_cache_path("hasten", appauthor=False)
    path = Path(chosen).expanduser()
    if not path.is_absolute():
        raise ConfigError(f"HASTEN_HOME must be an absolute path, not {chosen!r}; set it to a full path or unset it.")
    return path


def gguf_directory() -> Path:
    return home() / "gguf"


def converted_directory() -> Path:
    return home() / "converted"


def catalogue_path(name: str) -> Path:
    """Where the finished file of a catalogue model lies, whether or not it is there."""
    return gguf_directory() / f"{_safe(name)}.gguf"


def partial_directory(name: str) -> Path:
    """Where an unfinished download of a catalogue model lies."""
    return gguf_directory() / f"{_safe(name)}.partial"


@contextmanager
def exclusive(name: str, on_wait: Callable[[], None] | None) -> Iterator[None]:
    """Hold the lock of a catalogue model, so that two processes never write it at once; a process that dies lets go of it.

    When another process holds it: calls ``on_wait`` and waits, or raises ModelError when that is None. ModelError also where the
    disk refuses the lock.
    """
    lock = FileLock(gguf_directory() / f"{_safe(name)}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is None:
            raise ModelError(f"{name} is being downloaded by another process; wait for it or stop it first.") from None
        on_wait()
        lock.acquire(poll_interval=0.2)
    except OSError as problem:
        raise ModelError(refusal(gguf_directory(), problem)) from problem
    try:
        yield
    finally:
        lock.release()


def converted_path(fingerprint: str, precision: str) -> Path:
    """Where weights of the source with this fingerprint, converted to this precision, are kept."""
    return converted_directory() / f"{_safe(fingerprint)}-{_safe(precision)}.weights"


def calibrated_path(fingerprint: str, precision: str) -> Path:
    """Where ``hasten quantize`` keeps what it made of the source with this fingerprint."""
    return converted_directory() / f"{_safe(fingerprint)}-{_safe(precision)}-calibrated.weights"


def speculator_path(fingerprint: str) -> Path:
    """Where the speculator lies that was trained for the source with this fingerprint."""
    return converted_directory() / f"{_safe(fingerprint)}-speculator.weights"


def learnt_directory() -> Path:
    return home() / "learnt"


def drafts_directory() -> Path:
    return home() / "drafts"


def trimmed_directory() -> Path:
    return home() / "trimmed"


def directories() -> tuple[Path, ...]:
    """All those above."""
    return (gguf_directory(), converted_directory(), drafts_directory(), trimmed_directory(), learnt_directory())


def trim_path(draft: str, vocabulary: str) -> Path:
    """Where the choice of ids lies that the draft model with this fingerprint computes of the vocabulary with that one."""
    return trimmed_directory() / f"{_safe(draft)[:32]}-{_safe(vocabulary)[:32]}.json"


def record_conversion(path: Path, source: Path) -> None:
    """Write the note beside the converted weights ``path`` that says what they were made from, so that ``hasten rm`` finds
    them. Raises OSError when the disk refuses."""
    note = path.with_suffix(".json")
    with Replacement(note) as replacement:
        replacement.file.write(json.dumps({"source": str(source.resolve())}).encode())


def conversions_of(source: Path) -> list[Path]:
    """Every file kept of conversions of ``source``: weights, notes and what interrupted writers left."""
    wanted = str(source.resolve())
    found: set[Path] = set()
    for note in converted_directory().glob("*.json"):
        if _source_of(note) == wanted:
            found.update(note.parent.glob(f"{_literal(note.stem)}.*"))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Removal:
    """Files and directories that one ``rm`` frees, and their bytes."""

    paths: tuple[Path, ...]
    bytes: int


def removal(name: str | None, source: Path) -> Removal:
    """What there is to remove of a model: the catalogue files of ``name`` (None: none) and the conversions of ``source``.

    Never holds ``source`` itself unless it is the catalogue's own file.
    """
    candidates = [] if name is None else [catalogue_path(name), partial_directory(name)]
    paths = [path for path in candidates if os.path.lexists(path)]
    paths += conversions_of(source)
    return Removal(tuple(paths), sum(_size(path) for path in paths))


def learnings() -> Removal:
    """All that drafting keeps: texts and databases of drafters, chosen vocabularies, and what the controller learnt."""
    kept = (drafts_directory(), trimmed_directory(), learnt_directory())
    paths = [path for folder in kept if folder.is_dir() for path in sorted(folder.iterdir())]
    return Removal(tuple(paths), sum(_size(path) for path in paths))


def remove(what: Removal) -> None:
    """Delete it. Raises ModelError when a path is not directly in Hasten's own directories or cannot be deleted; links are
    deleted, never what they point at."""
    own = {folder.resolve() for folder in directories()}
    for path in what.paths:
        if path.parent.resolve() not in own or path.name in ("", ".", ".."):
            raise ModelError(f"{path} is outside {home()} and is left alone; remove it yourself if you want it gone.")
    for path in what.paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as problem:
            raise ModelError(f"{path} could not be removed ({problem.strerror}); check its permissions.") from problem


def _safe(name: str) -> str:
    """``name`` when it is one plain file name, so that no name leads out of its directory."""
    if not _SAFE_NAME.fullmatch(name) or ".." in name:
        raise ModelError(f"{name!r} cannot be a file name here; use letters, digits, '.', '_' and '-' only.")
    return name


def _literal(stem: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", stem)


def _source_of(note: Path) -> str | None:
    try:
        with note.open("rb") as file:
            content = json.loads(file.read(1 << 16))
    except (OSError, ValueError, RecursionError):
        return None
    source = content.get("source") if isinstance(content, dict) else None
    return source if isinstance(source, str) else None


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(inner) for inner in path.iterdir())
    try:
        return path.lstat().st_size
    except OSError:
        return 0
