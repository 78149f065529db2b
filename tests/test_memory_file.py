"""The memory drafter's file: restarts, kills, damage, locks, full and read-only disks, bounds."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hasten.core.damaged import free_name, set_aside
from hasten.draft.memory import MemoryDrafter
from hasten.draft.output_store import COMPANIONS, MOST_WAITING, OutputStore
from test_memory import PROMPT, answer, live, tree_for

CHILD = """
import json, sys
sys.path.insert(0, {tests!r})
from test_memory import *
print(json.dumps(live(MemoryDrafter({path!r}, "v"), "A", PROMPT, answer(1))))
"""


def in_another_process(path: Path) -> list[int]:
    program = CHILD.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    out: list[int] = json.loads(done.stdout)
    return out


def test_warm_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "memory.sqlite"
    cold, warm = in_another_process(path), in_another_process(path)
    assert cold[0] < 5
    assert warm[0] >= 105
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_the_mode_of_a_file_that_lies_open_is_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "m"
    live(MemoryDrafter(path), "", PROMPT, answer(1))
    path.chmod(0o644)
    live(MemoryDrafter(path), "", PROMPT, answer(2))
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


KILLED = """
import sys
import numpy as np
from pathlib import Path
from hasten.draft.output_store import OutputStore
store = OutputStore(Path(sys.argv[1]), 50_000, 100_000)
for number in range(10**9):
    size = number * 37 % 3000 + 2
    store.save("A", "v", np.full(size, number % 1000, dtype=np.int32), 1)
    if number == 20: print("going", flush=True)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "m"
    for round_number in range(3):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05 + 0.03 * round_number)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        rows = OutputStore(path, 50_000, 100_000).load("A", "v")
        assert len(rows) > 3
        assert all(len(set(tokens.tolist())) == 1 for tokens, _ in rows)
        assert sum(len(tokens) for tokens, _ in rows) <= 50_000
    assert not list(tmp_path.glob("*damaged*"))


def small_store(path: Path) -> OutputStore:
    return OutputStore(path, tenant_tokens=1000, all_tokens=3000)


def some(size: int, value: int = 7) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.full(size, value, dtype=np.int32)


def test_the_bounds_on_disk_are_kept_oldest_first(tmp_path: Path) -> None:
    store = small_store(tmp_path / "m")
    for number in range(200):
        store.save(f"tenant {number % 5}", "v", some(90, number), 1)
        loaded = [store.load(f"tenant {tenant}", "v") for tenant in range(5)]
        sizes = [sum(len(tokens) for tokens, _ in rows) for rows in loaded]
        assert max(sizes) <= 1000
        assert sum(sizes) <= 3000
        numbers = [int(tokens[0]) for tokens, _ in loaded[number % 5]]
        assert numbers == list(range(number - 5 * (len(numbers) - 1), number + 1, 5))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 8_000_000
    again = small_store(tmp_path / "m")
    again.save("tenant 0", "v", some(900), 1)
    assert sum(len(tokens) for tokens, _ in again.load("tenant 0", "v")) <= 1000


def damaged(kind: str, whole: bytes) -> bytes:
    randomness = random.Random(3)
    if kind == "half":
        return whole[: len(whole) // 2]
    if kind == "start":
        return whole[:50]
    if kind == "scribbled":
        return whole[:200] + bytes(randomness.randrange(256) for _ in range(len(whole) - 200))
    if kind == "noise":
        return bytes(randomness.randrange(256) for _ in range(5000))
    return b"Dear diary, this is no database at all. " * 100


@pytest.mark.parametrize("kind", ["half", "start", "scribbled", "noise", "text"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    whole, path = tmp_path / "whole", tmp_path / "m"
    store = OutputStore(whole, 10**6, 10**6)
    for number in range(200):
        store.save("A", "v", some(500, number), 1)
    assert store._connection is not None
    store._connection.close()
    content = damaged(kind, whole.read_bytes())
    for number in (1, 2):
        path.write_bytes(content)
        caplog.clear()
        drafter = MemoryDrafter(path, "v")
        assert (tmp_path / f"m.damaged-{number}").read_bytes() == content
        assert len(caplog.records) == 1
        assert f"m.damaged-{number}" in caplog.text
        live(drafter, "A", PROMPT, answer(1))
        again = MemoryDrafter(path, "v")
        assert live(again, "A", PROMPT, answer(1))[0] > 100
        assert len(caplog.records) == 1
        for one in (drafter, again):
            assert one._store is not None
            assert one._store._connection is not None
            one._store._connection.close()


def test_another_programs_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE outputs(id, tenant, vocabulary, context, tokens)")
    connection.close()
    assert small_store(path).usable
    assert (tmp_path / "m.damaged-1").exists()
    assert "another program" in caplog.text


def test_a_newer_format_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"
    small_store(path).save("A", "v", some(9), 1)
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE outputs ADD COLUMN more")
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    assert not small_store(path).usable
    assert "newer" in caplog.text
    assert not list(tmp_path.glob("*damaged*"))


def closed_store(path: Path) -> bytearray:
    """A file that holds one output, all of it."""
    store = small_store(path)
    store.save("A", "v", some(9), 1)
    assert store._connection is not None
    store._connection.close()
    return bytearray(path.read_bytes())


def changed(path: Path, statement: str) -> bytes:
    with sqlite3.connect(path) as connection:
        connection.executescript(statement)
    connection.close()
    return path.read_bytes()


def flipped(whole: bytearray, at: int, bit: int) -> bytes:
    whole[at] ^= bit
    return bytes(whole)


DAMAGES = {
    "text of the schema": lambda path, whole: flipped(whole, whole.index(b"CREATE TABLE outputs") + 3, 0x80),
    "name of a column": lambda path, whole: flipped(whole, whole.index(b"context INTEGER"), 1),
    "number of the format": lambda path, whole: flipped(whole, 63, 8),
    "file format that is read": lambda path, whole: flipped(whole, 19, 4),
    "file format that is written": lambda path, whole: flipped(whole, 18, 4),
    "schema format": lambda path, whole: flipped(whole, 47, 8),
    "infinite size": lambda path, whole: changed(path, "UPDATE outputs SET size = 9e999"),
    "huge size": lambda path, whole: changed(path, f"UPDATE outputs SET size = {2**63 - 1}"),
    "size that is text": lambda path, whole: changed(path, "UPDATE outputs SET size = 'x'"),
    "tables and number": lambda path, whole: changed(path, "ALTER TABLE outputs ADD COLUMN more; PRAGMA user_version = 65536"),
    "last number": lambda path, whole: changed(path, f"UPDATE sqlite_sequence SET seq = {2**63 - 1}"),
    "another table": lambda path, whole: changed(path, "CREATE TABLE more(x)"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_what_sqlite_does_not_check_is_set_aside_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / "m"
    content = DAMAGES[kind](path, closed_store(path))
    path.write_bytes(content)
    for number in range(3):
        store = small_store(path)
        store.save("A", "v", some(9, number), 1)
        store.save("A", "v", some(9, number), 1)  # with what could not be written to the damaged file
        assert len(store.load("A", "v")) == 2 * number + 2
        assert store.usable
        assert store._connection is not None
        store._connection.close()
    assert len(caplog.records) == 1
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["m", "m.damaged-1"]


def test_a_damaged_name_or_text_costs_its_row_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"
    closed_store(path)
    insert = "INSERT INTO outputs(tenant, vocabulary, context, size, tokens) VALUES (?, CAST(? AS TEXT), 1, 9, CAST(? AS TEXT))"
    with sqlite3.connect(path) as connection:
        connection.execute(insert, (b"A", b"\xf6", b""))
        connection.execute(insert, (b"A", b"v", b"\xe1\x02"))
    connection.close()
    store = small_store(path)
    assert len(store.load("A", "v")) == 1
    store.save("A", "v", some(9), 1)
    assert store.usable
    assert not caplog.records


def test_a_new_file_of_another_process_is_not_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"
    store = small_store(path)
    store.save("A", "v", some(9), 1)
    assert set_aside(path, "m is damaged", free_name(path), companions=COMPANIONS)
    small_store(path).save("A", "v", some(5), 1)
    store._trouble(ValueError("damage"))
    assert [len(tokens) for tokens, _ in store.load("A", "v")] == [5]
    assert sorted(file.name for file in tmp_path.glob("*damaged-?")) == ["m.damaged-1"]


def test_an_empty_file_is_a_new_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"")
    small_store(path).save("A", "v", some(9), 1)
    assert len(small_store(path).load("A", "v")) == 1
    assert not caplog.records


def test_rows_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    store = small_store(tmp_path / "m")
    store.save("A", "v", some(9), 1)
    with sqlite3.connect(tmp_path / "m") as connection:
        insert = "INSERT INTO outputs(tenant, vocabulary, context, size, tokens) VALUES (?, 'v', ?, 1, ?)"
        for context, blob in (
            (0, b"abc"),
            (5, b"\0" * 8),
            (-1, b"\0" * 8),
            (0, b"\xff" * 8),
            (0, "text"),
            ("x", b"\0" * 8),
            (0, b""),
        ):
            connection.execute(insert, (b"A", context, blob))
    connection.close()
    assert [len(tokens) for tokens, _ in store.load("A", "v")] == [9]


def test_damage_that_shows_later_is_set_aside_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"
    store = OutputStore(path, 10**6, 10**6)
    for number in range(100):
        store.save("A", "v", some(2000, number), 1)
    assert store._connection is not None
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._connection.execute("PRAGMA cache_size = 1")
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    assert store.load("A", "v") == []
    assert (tmp_path / "m.damaged-1").exists()
    assert store.usable
    store.save("A", "v", some(9), 1)
    assert len(store.load("A", "v")) == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("where", ["file/m", "folder"])
def test_a_place_that_cannot_be_used_costs_the_keeping_only(tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    drafter = MemoryDrafter(tmp_path / where)
    live(drafter, "", PROMPT, answer(1))
    assert live(drafter, "", PROMPT, answer(1))[0] > 100
    assert len(caplog.records) == 1


def test_a_disk_that_is_read_only_costs_the_keeping_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    drafter = MemoryDrafter(tmp_path / "m")
    assert drafter._store is not None
    assert drafter._store._connection is not None
    drafter._store._connection.execute("PRAGMA query_only = ON")
    for seed in range(5):
        live(drafter, "", PROMPT, answer(seed))
    assert live(drafter, "", PROMPT, answer(1))[0] > 100
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not list(tmp_path.glob("*damaged*"))


FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_memory import *
drafter = MemoryDrafter({path!r})
live(drafter, "", PROMPT, answer(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
for seed in range(200): live(drafter, "", PROMPT, answer(seed))
assert live(drafter, "", PROMPT, answer(150))[0] > 100
assert not drafter._store.usable
"""


def test_a_full_disk_costs_the_keeping_only(tmp_path: Path) -> None:
    program = FULL.format(tests=str(Path(__file__).parent), path=str(tmp_path / "m"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no longer kept on disk") == 1
    assert live(MemoryDrafter(tmp_path / "m"), "", PROMPT, answer(0))[0] > 100  # what was written before is whole


def test_a_lock_is_waited_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"
    store = small_store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for number in range(MOST_WAITING + 5):
        started = time.monotonic()
        store.save("A", "v", some(4, number), 1)
        assert time.monotonic() - started < 1.0
        if number == 3:
            store._connection.execute("PRAGMA busy_timeout = 0")  # type: ignore[union-attr]
    assert len(caplog.records) == 1
    other.execute("ROLLBACK")
    other.close()
    store.save("A", "v", some(4, 100), 1)
    assert [int(tokens[0]) for tokens, _ in store.load("A", "v")] == [*range(6, MOST_WAITING + 5), 100]
    assert len(caplog.records) == 1


def test_a_full_disk_is_outlasted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = OutputStore(tmp_path / "m", tenant_tokens=100_000, all_tokens=300_000)
    store.save("A", "v", some(4, 0), 1)
    connection = store._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(1, 4):
        store.save("A", "v", some(3000, number), 1)
    (record,) = caplog.records
    assert record.getMessage().endswith("is full; the latest outputs wait in memory until there is room.")
    assert [int(tokens[0]) for tokens, _ in store.load("A", "v")] == [0], "what is there can still be read"
    connection.execute("PRAGMA max_page_count = 100000")
    store.save("A", "v", some(4, 4), 1)
    assert [int(tokens[0]) for tokens, _ in store.load("A", "v")] == [0, 1, 2, 3, 4]
    assert len(caplog.records) == 1
    assert store.usable


def test_two_drafters_share_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m"

    def fill(first: int) -> None:
        drafter = MemoryDrafter(path)
        for seed in range(first, first + 15):
            live(drafter, "", PROMPT, answer(seed, 40))

    threads = [threading.Thread(target=fill, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [record for record in caplog.records if "locked" not in record.message]
    both = MemoryDrafter(path)
    known = [live(both, "", PROMPT, answer(seed, 40))[0] > 20 for first in (0, 100, 200) for seed in range(first, first + 15)]
    assert sum(known) >= 40


def test_nothing_is_written_between_begin_and_end(tmp_path: Path) -> None:
    drafter = MemoryDrafter(tmp_path / "m")
    live(drafter, "", PROMPT, answer(1))
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in tmp_path.iterdir()}
    for length in range(1, 100):
        tree_for(drafter, "", PROMPT, answer(1)[:length])
    assert before == {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in tmp_path.iterdir()}
    assert os.listdir(tmp_path)
