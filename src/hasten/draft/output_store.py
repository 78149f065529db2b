"""A file of past outputs, one SQLite database for all tenants and vocabularies. No torch.

Losing it costs guesses, never an answer, so no trouble with it reaches the caller: a damaged or foreign file is set aside as
``NAME.damaged-N`` and a new one begun; what cannot be read or written (disk full, read-only, locked) is left out, with one warning.
A lock and a full disk are outlasted: the latest outputs wait in memory, and are written once there is room.
Each output is one row, written in one transaction to a write-ahead log, so that a process may be killed at any moment.
The file can be read by its owner only.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hasten.core.damaged import free_name, set_aside

log = logging.getLogger(__name__)
APPLICATION = 0x48415354  # "HAST", in the file's header
VERSION = 1
MOST_VERSIONS = 99  # a higher number is damage
PATIENCE_MS = 20  # for another process's lock, while a sequence ends
OPENING_PATIENCE_S = 1.0
MOST_WAITING = 64  # outputs kept for the next transaction while the file is locked, or the disk full
MOST_SIZE = 1 << 31  # of an output
MOST_OUTPUTS = 1 << 62  # ever written: SQLite calls a file full whose last number is the largest that it has
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: what is asked fits every sound file
COMPANIONS = ("-wal", "-shm")  # endings of SQLite's files beside a database
KEPT_AFTER_PRUNING = 0.9  # so that not every write has to remove something

# SQLite keeps these texts as they are. A format of another number has other texts, so that a damaged number can be told from it.
TABLE = """CREATE TABLE outputs(
    id INTEGER PRIMARY KEY AUTOINCREMENT, tenant BLOB NOT NULL, vocabulary TEXT NOT NULL,
    context INTEGER NOT NULL, size INTEGER NOT NULL, tokens BLOB NOT NULL)"""
INDEX = "CREATE INDEX outputs_by_tenant ON outputs(tenant, vocabulary, id, size)"
SCHEMA = f"""
BEGIN IMMEDIATE;
{TABLE};
{INDEX};
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""
INSERT = "INSERT INTO outputs(tenant, vocabulary, context, size, tokens) VALUES (?, ?, ?, ?, ?)"
PRUNE = """
DELETE FROM outputs WHERE id IN (
    SELECT id FROM (SELECT id, total(size) OVER (ORDER BY id DESC) AS newer FROM outputs WHERE {where}) WHERE newer > ?)
"""
OF_TENANT = "tenant = ? AND vocabulary = ?"

Tokens = npt.NDArray[np.int32]
Row = tuple[bytes, str, int, int, bytes]  # tenant, vocabulary, context, size, tokens


class _Foreign(Exception):
    """The file is a database, but not of this kind, or not a sound one."""


# SQLite's own messages may quote damaged text, which Python then cannot decode (a ValueError).
FAILURES = (sqlite3.Error, ValueError, OverflowError, _Foreign)


@dataclass(eq=False)
class OutputStore:
    """Keeps ``tenant_tokens`` tokens of each tenant and vocabulary and ``all_tokens`` in all, the newest outputs.

    Another process that writes to the same file may pass the bounds until this one next counts, when it opens the file.
    """

    path: Path
    tenant_tokens: int
    all_tokens: int
    _connection: sqlite3.Connection | None = None
    _file: tuple[int, int] | None = None  # device and inode of what lay at ``path`` when it was opened
    _warned: bool = False
    _waiting: list[Row] = field(default_factory=list)
    _sizes: dict[tuple[bytes, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._open()

    @property
    def usable(self) -> bool:
        """Whether outputs are still kept on disk."""
        return self._connection is not None

    def load(self, tenant: str, vocabulary: str) -> list[tuple[Tokens, int]]:
        """The outputs of a tenant, oldest first: tokens, and how many of them are context. Rows that make no sense are left out."""
        if self._connection is None:
            return []
        query = f"SELECT context, tokens FROM outputs WHERE {OF_TENANT} ORDER BY id"
        try:
            rows = self._connection.execute(query, (_key(tenant), vocabulary)).fetchall()
        except FAILURES as problem:
            self._trouble(problem)
            return []
        return [(np.frombuffer(blob, dtype="<i4").astype(np.int32), context) for context, blob in rows if _sensible(context, blob)]

    def save(self, tenant: str, vocabulary: str, tokens: Tokens, context: int) -> None:
        """Append an output, with those that waited for a lock, and remove the oldest that no longer fit."""
        if self._connection is None:
            return
        self._waiting.append((_key(tenant), vocabulary, context, len(tokens), tokens.astype("<i4").tobytes()))
        del self._waiting[:-MOST_WAITING]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                sizes = self._write(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except FAILURES as problem:
            self._trouble(problem)
        else:
            self._sizes = sizes
            self._waiting.clear()

    def _write(self, connection: sqlite3.Connection) -> dict[tuple[bytes, str], int]:
        """Insert what waits and prune; returns the sizes as they will be when this is committed."""
        sizes = dict(self._sizes)
        connection.executemany(INSERT, self._waiting)
        for tenant, vocabulary, _, size, _ in self._waiting:
            sizes[tenant, vocabulary] = sizes.get((tenant, vocabulary), 0) + size
        for owner in {(row[0], row[1]) for row in self._waiting}:
            if sizes[owner] > self.tenant_tokens:
                connection.execute(PRUNE.format(where=OF_TENANT), (*owner, int(self.tenant_tokens * KEPT_AFTER_PRUNING)))
                sizes = _count(connection)
        if sum(sizes.values()) > self.all_tokens:
            connection.execute(PRUNE.format(where="true"), (int(self.all_tokens * KEPT_AFTER_PRUNING),))
            sizes = _count(connection)
        return sizes

    def _open(self, again: bool = False) -> None:
        connection = None
        try:
            _create_private(self.path)
            self._file = _identity(self.path)
            connection = sqlite3.connect(self.path, timeout=OPENING_PATIENCE_S, isolation_level=None, check_same_thread=False)
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a damaged name is nobody's
            _prepare(connection)
            self._sizes = _count(connection)
            connection.execute(f"PRAGMA busy_timeout = {PATIENCE_MS}")
        except (OSError, *FAILURES) as problem:
            if connection is not None:
                connection.close()
            if again or not _is_damage(problem, self.path):
                self._warn(f"The draft memory {self.path} cannot be used ({problem}); outputs are not kept on disk.")
            else:
                self._set_aside(problem)
            return
        self._connection = connection
        weakref.finalize(self, connection.close)

    def _trouble(self, problem: Exception) -> None:
        """A statement failed: a lock and a full disk are waited out, damage is set aside, anything else ends the keeping."""
        code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._warn(f"The draft memory {self.path} is locked by another process; outputs wait in memory until it lets go.")
            return
        if code == sqlite3.SQLITE_FULL:
            self._warn(f"The disk of the draft memory {self.path} is full; the latest outputs wait in memory until there is room.")
            return
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if _is_damage(problem, self.path):
            self._set_aside(problem)
        else:
            self._warn(f"The draft memory {self.path} cannot be used ({problem}); outputs are no longer kept on disk.")

    def _set_aside(self, problem: Exception) -> None:
        try:
            ours = _identity(self.path) == self._file  # else another process was first
        except OSError as refusal:
            self._warn(f"The draft memory {self.path} is damaged and cannot be read ({refusal}); nothing is kept on disk.")
            return
        why, then = f"The draft memory {self.path} is damaged ({problem})", " and a new one is begun"
        if not ours or set_aside(self.path, why, free_name(self.path), then, COMPANIONS):
            self._open(again=True)

    def _warn(self, sentence: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s", sentence)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _create_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never opened and closed when it exists: closing any handle would drop the locks of this process's other connections.
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)  # the log files take the mode of the database


def _prepare(connection: sqlite3.Connection) -> None:
    """Check that the file is ours and whole, or begin it. Raises sqlite3.Error or _Foreign."""
    tables = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")}
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if tables and application != APPLICATION:
        raise _Foreign("it is another program's database")
    if tables and tables != {TABLE, INDEX}:
        if VERSION < version <= MOST_VERSIONS:
            raise sqlite3.NotSupportedError(f"it was written by a newer Hasten, format {version}")
        raise _Foreign("its tables are not those of this program")
    if tables and version != VERSION:
        raise _Foreign(f"its format cannot be {version}")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous = " + ("NORMAL" if mode == "wal" else "FULL"))
    connection.execute("PRAGMA trusted_schema = OFF")
    if not tables:
        try:
            connection.executescript(SCHEMA)
        except sqlite3.OperationalError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.execute("SELECT context, size, tokens FROM outputs LIMIT 1")  # another process was first
    elif (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise _Foreign(str(found))
    elif (connection.execute("SELECT max(seq) FROM sqlite_sequence").fetchone()[0] or 0) > MOST_OUTPUTS:
        raise _Foreign("its outputs are numbered too high")


def _count(connection: sqlite3.Connection) -> dict[tuple[bytes, str], int]:
    """Tokens of each tenant and vocabulary. Raises _Foreign where a size makes no sense."""
    query = "SELECT tenant, vocabulary, total(size), min(size), max(size) FROM outputs GROUP BY tenant, vocabulary"
    sizes = {}
    for tenant, vocabulary, total, least, most in connection.execute(query):
        if not isinstance(least, int) or not isinstance(most, int) or least < 0 or most > MOST_SIZE:
            raise _Foreign("the size of an output makes no sense")
        sizes[tenant, vocabulary] = int(total)
    return sizes


def _is_damage(problem: Exception, path: Path) -> bool:
    if not isinstance(problem, OSError | sqlite3.Error):
        return True
    code = getattr(problem, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_READONLY:  # so SQLite takes a file with damaged format bytes, too
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return code & 0xFF in DAMAGE


def _key(tenant: str) -> bytes:
    return tenant.encode("utf-8", "surrogatepass")


def _sensible(context: object, blob: object) -> bool:
    """Whether a row could have been written here: whole, non-negative token ids, and something behind the context."""
    if not isinstance(blob, bytes) or not isinstance(context, int) or len(blob) % 4 or not 0 <= context < len(blob) // 4:
        return False
    return bool((np.frombuffer(blob, dtype="<i4") >= 0).all())
