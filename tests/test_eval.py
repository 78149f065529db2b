"""``hasten eval``: the lock that generated code runs behind, what counts as solved, and that drafts change nothing."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

import hasten.cli.eval as verb
from hasten.bench.jail import ALLOWED
from hasten.bench.perplexity import perplexity
from hasten.bench.quality import judge, program_of, verified_perplexity
from hasten.bench.sandbox import run_locked
from hasten.cli.main import run
from hasten.draft.recycling import RecyclingDrafter
from tiny import LETTERS, tiny_engine, tiny_executor

locked = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in ALLOWED, reason="code is locked in on Linux, x86-64 and ARM64 only"
)
PROBLEM = {
    "task_id": "T/0",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """ Sum. """\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
}


@locked
def test_harmless_programs_run() -> None:
    assert run_locked(
        "import math, re, collections, heapq, itertools, functools, typing, random, string, datetime\nassert 1"
    ).passed
    assert run_locked("print('x' * 10_000_000)").passed


@locked
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import socket; socket.socket()", "PermissionError"),
        ("import socket; socket.socketpair()", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import os; os.execv('/bin/true', ['true'])", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("open('out.txt', 'w')", "PermissionError"),
        ("open('/tmp/hasten-escaped', 'a')", "PermissionError"),
        ("import os; os.open('x', os.O_RDWR | os.O_CREAT)", "PermissionError"),
        ("import os; os.mkdir('x')", "PermissionError"),
        ("import os; os.remove('{victim}')", "PermissionError"),
        ("import os; os.rename('{victim}', '{victim}2')", "PermissionError"),
        ("import os; os.chmod('{victim}', 0)", "PermissionError"),
        ("import os; os.truncate('{victim}', 0)", "PermissionError"),
        ("import os; os.symlink('a', 'b')", "PermissionError"),
        ("import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 1))", "not allowed"),
        ("import ctypes; l = ctypes.CDLL(None, use_errno=True); assert l.unshare(0x10000000) == 0", "AssertionError"),
        ("import ctypes; l = ctypes.CDLL(None, use_errno=True); assert l.syscall(437, -100, b'x', 0, 0) >= 0", "AssertionError"),
        # A descriptor can be told to signal another process when something happens to it.
        ("import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())", "PermissionError"),
        ("import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, 9)", "PermissionError"),
        ("import fcntl, os; fcntl.fcntl(os.open('.', 0), fcntl.F_NOTIFY, fcntl.DN_CREATE)", "PermissionError"),
        ("import fcntl, os; fcntl.ioctl(os.pipe()[0], 0x8901, os.getppid().to_bytes(4, 'little'))", "PermissionError"),
        # What outlives the process: shared memory, queues, and semaphores of the system.
        ("import ctypes as c; l = c.CDLL(None); assert l.shmget(0x4A57, 4096, 0o1600) >= 0", "AssertionError"),
        ("import ctypes as c; l = c.CDLL(None); assert l.msgget(0x4A57, 0o1600) >= 0", "AssertionError"),
        ("import ctypes as c; l = c.CDLL(None); assert l.semget(0x4A57, 1, 0o1600) >= 0", "AssertionError"),
        ("import ctypes as c; l = c.CDLL(None); assert l.mq_open(b'/hasten', 0o102, 0o600, 0) >= 0", "AssertionError"),
        ("import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 5)", "PermissionError"),
        ("import os; os.sched_setaffinity(os.getppid(), {0})", "PermissionError"),
        ("import os; os.setuid(65534)", "PermissionError"),
        ("import os; os.chroot('/')", "PermissionError"),
        ("import ctypes as c; assert c.CDLL(None).syscall(100_000) >= 0, 'unheard of'", "unheard of"),
        ("x = bytearray(1 << 31)", "MemoryError"),
        ("import mmap; x = [mmap.mmap(-1, 1 << 28) for _ in range(8)]", "Cannot allocate memory"),
        ("import os; os._exit(0)", "left early"),
        ("raise SystemExit(0)", "left early"),
        ("assert False, 'wrong'", "AssertionError: wrong"),
        ("import os; assert os.environ.get('HOME')", "AssertionError"),
    ],
)
def test_harm_is_refused(program: str, why: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("here")
    outcome = run_locked(program.replace("{victim}", str(victim)))
    assert not outcome.passed
    assert why in outcome.why
    assert victim.read_text() == "here"


@locked
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the older system calls are those of x86")
def test_calls_by_the_32_bit_gate_end_the_program() -> None:
    program = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b814000000cd80c3"))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
    assert run_locked(program).why == "ended by SIGSYS"


@locked
def test_endless_programs_are_ended() -> None:
    assert run_locked("while True: pass", seconds=1, grace=200).why == "ended by SIGKILL"
    assert run_locked("import time; time.sleep(60)", seconds=1, grace=0.5).why == "not done after 1.5 s"


@locked
@pytest.mark.parametrize(
    ("answer", "chat", "passed"),
    [
        ("Sure:\n```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```\nDone.", True, True),
        ("```python\ndef total(xs):\n    return sum(xs) + 1\n```", True, False),
        ("```\n    return sum(xs)\n```", True, True),
        ("    return sum(xs)\n", True, True),
        ("    return sum(xs)\n\ndef other():\n    syntax error", False, True),
        ("    return 3\n", False, False),
        ("```python\ndef total(xs):\n    return sum(xs)", True, True),
        ("I cannot.", True, False),
    ],
)
def test_what_counts_as_solved(answer: str, chat: bool, passed: bool) -> None:
    assert judge(PROBLEM, answer, [], chat).outcome.passed is passed


def test_the_program_ends_with_the_tests() -> None:
    assert program_of(PROBLEM, "    return 0", False).endswith("check(total)\n")


def test_perplexity_of_verification_passes_is_that_of_whole_pieces() -> None:
    executor = tiny_executor("llama")
    chunks = [[at * 7 % 53 for at in range(30)], [1, 2, 3], [at % 5 for at in range(65)]]
    assert verified_perplexity(executor, chunks) == pytest.approx(perplexity(executor, chunks), rel=1e-12)


class TinyLLM:
    has_chat_template = False
    context_length = 600
    name, precision = "tiny", "fp64"
    spoilt = False

    def __init__(self, config: Any) -> None:
        self.engine = tiny_engine(drafters=[RecyclingDrafter()])
        self.engine.tokenizer.prefix_ids = ()  # type: ignore[misc]
        if self.spoilt:
            forward = self.engine.executor.forward
            self.engine.executor.forward = lambda batch: (  # type: ignore[method-assign]
                forward(batch).roll(1, -1) if any(len(segment.tree) for segment in batch.segments) else forward(batch)
            )

    def encode(self, prompt: str) -> list[int]:
        return [LETTERS.index(letter) for letter in prompt if letter in LETTERS][:40]

    def close(self) -> None:
        pass


@locked
@pytest.mark.parametrize("spoilt", [False, True])
def test_the_verb(spoilt: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "humaneval_dev.jsonl").write_text(json.dumps(PROBLEM))
    (tmp_path / "wikitext2_test_part.txt").write_text("the quick brown fox " * 60)
    monkeypatch.setenv("HASTEN_SHARED_DATA", str(tmp_path))
    monkeypatch.setattr(verb, "load", type("LLM", (TinyLLM,), {"spoilt": spoilt}))
    monkeypatch.setattr(verb, "CHUNK", 64)
    status = run(["eval", "-m", "tiny", "--chunks", "1", "--max-tokens", "40"])
    out = capsys.readouterr().out
    assert status == int(spoilt)
    assert "HumanEval pass@1 | 0 of 1 | 0 of 1" in out
    assert ("differ by" in out) is spoilt


def test_unknown_tasks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--tasks", "mmlu"]) == 2
    assert "There is no task called 'mmlu'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "option"),
    [("humaneval", "--chunks"), ("perplexity", "--problems"), ("perplexity", "--max-tokens"), ("humaneval", "--text")],
)
def test_options_of_other_tasks_are_refused(tasks: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--tasks", tasks, option, "3"]) == 2
    assert f"{option} is for the task" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--problems", "--chunks", "--max-tokens"])
@pytest.mark.parametrize("value", ["0", "-5", "two"])
def test_numbers_of_nothing_are_refused_before_any_file_is_read(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HASTEN_SHARED_DATA", str(tmp_path))
    assert run(["eval", option, value]) == 2
    assert f"'{option}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "file", "fix"),
    [
        ("perplexity", "wikitext2_test_part.txt", "or give --text FILE."),
        ("humaneval,perplexity", "humaneval_dev.jsonl", "or give --tasks perplexity --text FILE."),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_missing_data_is_named_with_what_this_verb_has_instead(
    tasks: str, file: str, fix: str, folder: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("hasten.bench.sandbox.check_sandbox", lambda: None)
    monkeypatch.setenv("HASTEN_SHARED_DATA", str(tmp_path))
    if not folder:
        monkeypatch.delenv("HASTEN_SHARED_DATA")
    assert run(["eval", "--tasks", tasks]) == 1
    said = capsys.readouterr().err
    where = f"in '{tmp_path}'" if folder else "part of Hasten"
    assert f"{file} is not {where}; set HASTEN_SHARED_DATA" in said
    assert "docs/bench.md" in said
    assert fix in said
    assert "--workload" not in said


def test_a_text_of_the_user_needs_no_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HASTEN_SHARED_DATA", raising=False)
    monkeypatch.setattr(verb, "load", TinyLLM)
    monkeypatch.setattr(verb, "CHUNK", 64)
    mine = tmp_path / "mine.txt"
    mine.write_text("the quick brown fox " * 60, encoding="utf-8")
    given = ["eval", "-m", "tiny", "--tasks", "perplexity", "--chunks", "1", "--text", str(mine)]
    assert run(given) == 0
    assert f"perplexity of {mine} | " in capsys.readouterr().out
    assert run([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == str(mine)
    mine.write_bytes(b"\xff")
    assert run(given) == 1
    assert "is not UTF-8 text" in capsys.readouterr().err
    mine.write_text("short", encoding="utf-8")
    assert run(given) == 1
    assert f"The text of '{mine}' has fewer than 64 tokens" in capsys.readouterr().err
    mine.write_text("the quick brown fox " * 9999, encoding="utf-8")
    monkeypatch.setattr(verb, "CHUNK", 9999)
    assert run(given) == 1
    assert "give --cache-tokens 9999 or more" in capsys.readouterr().err
