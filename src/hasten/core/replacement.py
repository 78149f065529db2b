"""Files that are replaced whole or not at all, however many write them at once. No torch."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ABANDONED_AFTER_S = 3600.0  # whoever writes a file for long writes to it more often


class Replacement:
    """A new content of ``path``, written to ``file`` in the same folder, under a name that nobody else writes to.

    ``finish`` puts it in place, ``abandon`` removes it; as a context, whichever fits how the block ends. ``durable`` has the disk
    confirm the content before it is put in place, so that not even a power cut leaves half of it; ``private`` files can be read by
    their owner only. Folders are made. What killed writers of ``path`` left is removed. Raises OSError when the disk refuses; then
    nothing of it stays, and ``path`` is as it was.
    """

    def __init__(self, path: Path, *, durable: bool = False, private: bool = False) -> None:
        self._path, self._durable = path, durable
        path.parent.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        _remove_abandoned(path)
        self._temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        mode = 0o600 if private else 0o666
        self.file = open(self._temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115

    def finish(self) -> None:
        """Put it in place. Raises OSError, and then it is abandoned."""
        try:
            self.file.flush()
            if self._durable:
                os.fsync(self.file.fileno())
            self.file.close()
            self._temporary.replace(self._path)
            if self._durable:
                sync_folder(self._path.parent)
        except OSError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Remove what was written. Raises nothing."""
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()


def refusal(path: Path, problem: OSError) -> str:
    """What a user is told when the disk refuses to have ``path``, which lies in Hasten's own folder, written."""
    fix = "free some space" if problem.errno in FULL else "check its permissions"
    return f"{path} cannot be written ({problem.strerror or problem}); {fix}, or set HASTEN_HOME to a folder that can be written."


def sync_folder(folder: Path) -> None:
    """Have the disk confirm the names in a folder, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_AFTER_S:
                left.unlink()
