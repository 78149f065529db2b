"""API keys: who may ask, and as which tenant. Only hashes are kept, on disk and in memory.

The file has a line a key, ``TENANT sha256:HEX``; '#' begins a comment. A key is 256 random bits, so one round of SHA-256 keeps
it: there is nothing to guess. ``hasten serve --new-key TENANT`` makes one and prints it once. A tenant may have several keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from hasten.core.errors import ConfigError

PREFIX = "hk-"
_LINE = re.compile(r"(?P<tenant>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})\s+sha256:(?P<digest>[0-9a-f]{64})")
_MOST_KEYS = 10_000
_MOST_BYTES = 4 << 20


class Keys:
    """The keys of one file. ``reload`` replaces them all, or none where the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _read(path)

    def __len__(self) -> int:
        return len(self._entries)

    def reload(self) -> None:
        """Raises ConfigError and keeps what it has when the file is wrong."""
        self._entries = _read(self._path)

    def tenant_of(self, key: str) -> str | None:
        """Whose key this is. Every entry is compared, each in constant time, so the time taken says nothing of a key."""
        digest = digest_of(key)
        found: str | None = None
        for tenant, known in self._entries:
            if hmac.compare_digest(digest, known):
                found = tenant
        return found


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def new_key(path: Path, tenant: str) -> str:
    """Make a key, append its hash to the file (made where there is none, readable by its owner only), and return it.

    Raises ConfigError when the name is no tenant's or the file cannot be used.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{tenant} sha256:{digest_of(key).hex()}"
    if _LINE.fullmatch(line) is None:
        raise ConfigError(
            f"A tenant's name has 1 to 64 letters, digits, '.', '_' or '-' and begins with one of the first two, not {tenant!r}."
        )
    if path.exists():
        _read(path)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as problem:
        raise ConfigError(f"The key file {path} cannot be written: {problem.strerror}.") from problem
    return key


def _read(path: Path) -> list[tuple[str, bytes]]:
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
    entries: list[tuple[str, bytes]] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ConfigError(
                f"{path}, line {number}: a key is written `TENANT sha256:HEX`; make one with `hasten serve --new-key TENANT`."
            )
        entries.append((found["tenant"], bytes.fromhex(found["digest"])))
    if not entries or len(entries) > _MOST_KEYS:
        raise ConfigError(f"The key file {path} has {len(entries)} keys; from 1 to {_MOST_KEYS} are allowed.")
    return entries
