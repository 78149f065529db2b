"""Models on the Hugging Face hub: reading their names, finding them in the hub's cache, fetching them into it. No torch.

Only weights in safetensors or GGUF, configuration and tokenizer files are ever fetched: no pickles and no code. The
environment variables of huggingface_hub count (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

from hasten.core.errors import DownloadError, HastenError, InvalidRequest, ModelNotFound, UnsupportedModel
from hasten.core.progress import Progress
from hasten.model.transfer import GOES_ON, Unreachable, disk, need_space

_ADDRESS = re.compile(r"^(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?=[^/]+/)")
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?::(?P<file>[\w.+-][\w.+/-]{0,200}))?"
    r"(?:@(?P<revision>[\w.+-][\w.+/-]{0,200}))?",
    re.ASCII,
)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_INDEX = "model.safetensors.index.json"
_COMPANIONS = {
    _INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
}
_INDEX_LIMIT = 64 << 20
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a hub repository."""

    repository: str
    filename: str
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class HubName:
    """What a user wrote: ``file`` is a file name, a quantisation tag, or None for the safetensors weights."""

    repository: str
    file: str | None = None
    revision: str = "main"

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return self.repository + (f":{self.file}" if self.file else "") + revision


def parse(name: str) -> HubName | None:
    """Read ``owner/name[:FILE.gguf|:TAG][@revision]``, also behind the hub's address; None when it is not of that form or would
    lead out of the cache."""
    name = _ADDRESS.sub("", name)
    match = _NAME.fullmatch(name)
    if match is None or ".." in name or "--" in match["repository"] or "//" in name:
        return None
    return HubName(match["repository"], match["file"], match["revision"] or "main")


def cached(name: HubName) -> Path | None:
    """The file or folder of ``name`` in the hub's cache, when all of it is there; no network."""
    folder = _snapshot(name)
    if folder is None:
        return None
    if name.file is None:
        return folder if _whole(folder) else None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf") if path.is_file()]
    chosen = _matching(name.file, names)
    return folder / chosen[0] if len(chosen) == 1 else None


def fetch(name: HubName, progress: Progress) -> Path:
    """Bring ``name`` into the hub's cache, as new as the hub has it; the file or folder.

    Raises ModelNotFound (no such repository, revision or file, or not for this token), UnsupportedModel (nothing there that
    Hasten reads) or DownloadError; a repeated call resumes.
    """
    sizes = _files(name)
    chosen = _choose(name, sizes)
    need_space(Path(constants.HF_HUB_CACHE), sum(_missing_bytes(name, file, sizes[file]) for file in chosen), str(name))
    path = Path()
    for number, filename in enumerate(chosen, 1):
        label = f"{name} {number}/{len(chosen)}" if len(chosen) > 1 else str(name)
        with _understood(str(name)):
            path = Path(
                huggingface_hub.hf_hub_download(
                    name.repository, filename, revision=name.revision, tqdm_class=reporting(label, progress)
                )
            )
    if name.file is not None:
        return path
    folder = path.parent
    if not _whole(folder):
        raise DownloadError(f"{name} changed on the hub while it was fetched; run `hasten pull {name}` once more.")
    return folder


def fetch_exact(source: HubFile, folder: Path, size: int, sha256: str, label: str, progress: Progress) -> Path:
    """Download one file of known content below ``folder``, resuming there.

    Asks the hub first what it has, so that nothing is fetched which cannot be the file wanted. Does not check the bytes.
    Raises ModelNotFound when the hub has another file of that name or none, else DownloadError.
    """
    with _understood(source.repository):
        url = huggingface_hub.hf_hub_url(source.repository, source.filename, revision=source.revision)
        offered = huggingface_hub.get_hf_file_metadata(url)
        other_hash = offered.etag is not None and re.fullmatch(r"[0-9a-f]{64}", offered.etag) and offered.etag != sha256
        if other_hash or offered.size not in (None, size):
            raise ModelNotFound(f"{source.repository} has another {source.filename} than the catalogue means.")
        return Path(
            huggingface_hub.hf_hub_download(
                source.repository,
                source.filename,
                revision=source.revision,
                local_dir=folder,
                tqdm_class=reporting(label, progress),
            )
        )


def _files(name: HubName) -> dict[str, int]:
    """Every file of the repository and its size."""
    with _understood(str(name)):
        about = huggingface_hub.HfApi().model_info(name.repository, revision=name.revision, files_metadata=True, timeout=20)
    return {file.rfilename: file.size or 0 for file in about.siblings or [] if ".." not in file.rfilename.split("/")}


def _choose(name: HubName, sizes: dict[str, int]) -> list[str]:
    """The files to fetch for ``name``: small ones first, so that what is missing shows early."""
    ggufs = sorted(file for file in sizes if file.lower().endswith(".gguf"))
    if name.file is not None:
        chosen = _matching(name.file, ggufs)
        if len(chosen) == 1 and not _PART.search(chosen[0]):
            return chosen
        if any(_PART.search(file) for file in (*chosen, *(file for file in ggufs if name.file.lower() in file.lower()))):
            raise UnsupportedModel(
                f"{name.repository} has '{name.file}' in several parts, which Hasten does not join; "
                "choose another of its files, or join them with llama.cpp's llama-gguf-split --merge and give the file."
            )
        has = f"it has {', '.join(ggufs[:12])}" if ggufs else "it has no GGUF files"
        trouble = "more than one GGUF file" if chosen else "no GGUF file"
        raise ModelNotFound(f"{name.repository} has {trouble} that matches '{name.file}'; {has}.")
    if not any(_WEIGHTS.fullmatch(file) for file in sizes) or "config.json" not in sizes:
        hint = f"choose one of its GGUF files, such as {name.repository}:{ggufs[0]}" if ggufs else "choose another repository"
        raise UnsupportedModel(f"{name} has no safetensors weights with a config.json; {hint}.")
    wanted = [file for file in sizes if file in _COMPANIONS or _WEIGHTS.fullmatch(file)]
    return sorted(wanted, key=lambda file: (sizes[file], file))


def _matching(wanted: str, ggufs: list[str]) -> list[str]:
    """The GGUF files that ``wanted`` names: exactly, or as the tag at the end of the stem ("q4_k_m" of x-Q4_K_M.gguf)."""
    if wanted.lower().endswith(".gguf"):
        return [file for file in ggufs if file == wanted]
    ending = re.compile(rf"(?:.*[-._/])?{re.escape(wanted)}\.gguf", re.IGNORECASE)
    return [file for file in ggufs if ending.fullmatch(file)]


def _missing_bytes(name: HubName, filename: str, size: int) -> int:
    found = huggingface_hub.try_to_load_from_cache(name.repository, filename, revision=name.revision)
    return 0 if isinstance(found, str) else size


def _snapshot(name: HubName) -> Path | None:
    """The cache's folder for this revision: snapshots/COMMIT, where refs/REVISION holds the commit of a branch or tag."""
    root = Path(constants.HF_HUB_CACHE) / ("models--" + name.repository.replace("/", "--"))
    commit = name.revision
    reference = root / "refs" / name.revision
    if reference.is_file() and reference.stat().st_size <= 64:
        commit = reference.read_text(encoding="ascii", errors="replace").strip()
    folder = root / "snapshots" / commit
    return folder if re.fullmatch(r"[0-9a-f]{6,64}", commit) and folder.is_dir() else None


def _whole(folder: Path) -> bool:
    """Whether config and every weight file that the folder's own index names are there."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / _INDEX
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    if index.stat().st_size > _INDEX_LIMIT:
        return False
    try:
        files = set(json.loads(index.read_bytes())["weight_map"].values())
        return bool(files) and all(_WEIGHTS.fullmatch(file) and (folder / file).is_file() for file in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """Say in one sentence what the hub's library reports."""
    try:
        yield
    except HastenError:
        raise
    except errors.OfflineModeIsEnabled as problem:
        raise Unreachable(f"{what} is not here and HF_HUB_OFFLINE forbids asking the hub; unset it and try again.") from problem
    except errors.GatedRepoError as problem:
        raise ModelNotFound(
            f"{what} asks you to accept its licence: do so on its page on the hub and set HF_TOKEN to your token."
        ) from problem
    except errors.RepositoryNotFoundError as problem:
        raise ModelNotFound(f"The hub has no repository {what}; check the spelling, or set HF_TOKEN if it is private.") from problem
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as problem:
        raise ModelNotFound(f"The hub has no such file or revision of {what}; check what its page lists.") from problem
    except errors.HFValidationError as problem:
        raise InvalidRequest(f"{what} is not a name that the hub allows; write owner/name.") from problem
    except Exception as problem:  # transport errors of httpx, httpx2 or requests: which one depends on the library's version
        if _of_the_disk(problem):
            with disk(Path(constants.HF_HUB_CACHE)):
                raise
        reason = (str(problem.__cause__ or problem).splitlines() or [type(problem).__name__])[0]
        raise Unreachable(
            f"The hub could not be reached for {what} ({reason}); check the network and proxy settings (HTTPS_PROXY), {GOES_ON}"
        ) from problem


def _of_the_disk(problem: Exception) -> bool:
    network = isinstance(problem, ConnectionError | TimeoutError)
    return isinstance(problem, OSError) and problem.errno is not None and not network


def reporting(label: str, progress: Progress) -> Any:
    """A class that looks to the hub's library like its progress bar and hands bytes to ``progress``."""

    class Reporting:
        def __init__(self, *_: object, total: int | None = None, initial: int = 0, **__: object) -> None:
            self.total, self.n = total or 0, initial
            progress(label, self.n, self.total)

        def update(self, count: int | float | None = 1) -> None:
            self.n += int(count or 0)
            progress(label, self.n, self.total)

        def __enter__(self) -> Reporting:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, _: str) -> Any:
            return lambda *_, **__: None

    return Reporting
