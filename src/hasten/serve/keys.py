"""API keys: who may ask, and as which tenant. Only hashes are kept, on disk and in memory.

The file has a line a key, ``TENANT sha256:HEX``; '#' begins a comment. A line that ends with the word ``metrics`` is of a key that
reads /metrics and nothing else. A key is 256 random bits, so one round of SHA-256 keeps it: there is nothing to guess. ``hasten
serve --new-key TENANT`` makes one and prints it once. A tenant may have several keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from hasten.core.errors import ConfigError

PREFIX = "hk-"
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LINE = re.compile(rf"(?P<tenant>{_TENANT.pattern})\s+sha256:(?P<digest>[0-9a-f]{{64}})(?P<metrics>\s+metrics)?")
_MOST_KEYS = 10_000
_MOST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose key it is. ``metrics_only``: it was made for reading /metrics, and nothing else is open to it."""

    tenant: str
    metrics_only: bool = False


class Keys:
    """The keys of one file. ``reload`` replaces them all, or none where the file cannot be used.

    Raises ConfigError where it cannot be used, or has no key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _read(path)
        if not self._entries:
            raise ConfigError(
                f"The key file {path} has no keys; make one with `hasten serve --new-key TENANT --api-key-file {path}`."
            )

    def __len__(self) -> int:
        return len(self._entries)

    def reload(self) -> None:
        """Raises ConfigError and keeps what it has when the file is wrong. One that has no key any more is not: its last key was
        taken out, so that nobody comes in."""
        self._entries = _read(self._path)

    @property
    def several_tenants(self) -> bool:
        """Whether more than one may ask a model."""
        return len({holder.tenant for holder, _ in self._entries if not holder.metrics_only}) > 1

    def holder_of(self, key: str) -> Holder | None:
        """Whose key this is. Every entry is compared, each in constant time, so the time taken says nothing of a key."""
        digest = digest_of(key)
        found: Holder | None = None
        for holder, known in self._entries:
            if hmac.compare_digest(digest, known):
                found = holder
        return found


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def check_tenant(name: str) -> None:
    """Raises ConfigError when that is no tenant's name."""
    if _TENANT.fullmatch(name) is None:
        raise ConfigError(
            f"A tenant's name has 1 to 64 letters, digits, '.', '_' or '-' and begins with one of the first two, not {name!r}."
        )


def new_key(path: Path, tenant: str, metrics_only: bool = False) -> str:
    """Make a key, append its hash to the file (made where there is none, readable by its owner only), and return it.
    ``metrics_only``: for reading /metrics, and nothing else.

    Raises ConfigError when the name is no tenant's or the file cannot be used.
    """
    check_tenant(tenant)
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{tenant} sha256:{digest_of(key).hex()}{' metrics' if metrics_only else ''}\n"
    if path.exists():
        _read(path)
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b") as file:
            begun = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write((f"\n{line}" if begun else line).encode())
    except OSError as problem:
        raise ConfigError(f"The key file {path} cannot be written: {problem.strerror}.") from problem
    return key


def _read(path: Path) -> list[tuple[Holder, bytes]]:
    try:
        about = path.stat()
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.name == "posix":
            raise ConfigError(f"The key file {path} can be written by others, who could add keys; run `chmod go-w {path}`.")
        if about.st_size > _MOST_BYTES:
            raise ConfigError(f"The key file {path} has {about.st_size} bytes where {_MOST_BYTES} are allowed.")
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"The key file {path} cannot be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise ConfigError(f"The key file {path} is not UTF-8 text.") from problem
    entries: list[tuple[Holder, bytes]] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ConfigError(
                f"{path}, line {number}: a key is written `TENANT sha256:HEX`, or `NAME sha256:HEX metrics` where it is for those "
                "only; make one with `hasten serve --new-key TENANT`."
            )
        entries.append((Holder(found["tenant"], found["metrics"] is not None), bytes.fromhex(found["digest"])))
    if len(entries) > _MOST_KEYS:
        raise ConfigError(f"The key file {path} has {len(entries)} keys where {_MOST_KEYS} are allowed.")
    return entries
