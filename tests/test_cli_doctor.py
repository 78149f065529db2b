"""`hasten doctor`: findings are complete, honest where nothing is known, and advice follows from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli_fakes import CommandLine
from hasten.cli import doctor, machine
from hasten.model.catalogue import CATALOGUE
from hasten.model.precision import FILE, FP32, INT8
from real import model_path

GIB = 1 << 30


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    monkeypatch.setattr(machine, "MEASURE_S", 0.01)
    monkeypatch.setattr(machine, "LARGE_BYTES", 1 << 22)
    return CommandLine(monkeypatch, capsys, tmp_path)


def test_json_has_every_section(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("doctor", "--json", HASTEN_HOME=str(tmp_path / "nothing" / "here"))
    assert done.status == 0
    report = json.loads(done.out)
    assert list(report["sections"]) == ["software", "processor", "torch", "native_kernels", "memory", "disk", "models"]
    assert report["sections"]["memory"]["read_bytes_per_second"] > 1e8
    assert report["sections"]["disk"]["models_folder"] == str(tmp_path / "nothing" / "here")
    assert report["sections"]["models"] == {}
    assert any("hasten pull" in sentence for sentence in report["advice"])
    assert not (tmp_path / "nothing").exists()


def test_for_people(command_line: CommandLine) -> None:
    done = command_line("doctor")
    assert done.status == 0
    for part in ("Software", "Processor", "Native kernels", "GB/s", "models folder"):
        assert part in done.out
    assert "\x1b" not in done.out


def test_a_broken_torch_is_found_and_fails(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = command_line("doctor", "--json")
    assert done.status == 1
    report = json.loads(done.out)
    assert "PyTorch cannot be imported" in report["problems"][0]
    assert "read_bytes_per_second" not in report["sections"]["memory"]
    assert "Cannot run" in command_line("doctor").out


@pytest.mark.real
def test_speeds_are_those_of_the_precision_that_runs(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    model_path("smollm2-135m")
    entry = CATALOGUE["smollm2-135m"]
    for bytes_read, found in ((entry.bytes, FILE), (entry.parameters, INT8), (4 * entry.parameters, FP32)):
        monkeypatch.setattr("hasten.model.linear_file.choose_precision", lambda *_, found=found: found)
        assert doctor._reads(entry, 1e10) == {"precision": found.name, "reads_per_second": round(1e10 / bytes_read, 1)}
    assert "plain tok/s in fp32" in command_line("doctor").out


CPUINFO = """processor : 0
model name : Some Processor
physical id : 0
core id : 0
flags : fpu sse2 {flags}

processor : 1
physical id : 0
core id : 0

processor : 2
physical id : 1
core id : 0
"""


def with_files(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    monkeypatch.setattr(machine, "_lines", lambda path: files.get(path, "").splitlines())


def test_processor_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    with_files(monkeypatch, {"/proc/cpuinfo": CPUINFO.format(flags="avx2 fma avx512_vnni avx2x")})
    assert machine.processor_name() == "Some Processor"
    assert machine.instruction_sets() == ["avx2", "fma", "avx512_vnni"]
    assert machine.physical_cores() == 2


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_files(monkeypatch, {})
    assert machine.processor_name()
    assert machine.instruction_sets() == []
    assert machine.physical_cores() is None
    assert machine.memory_bytes()[1] is None


def test_a_container_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with_files(monkeypatch, {"/proc/meminfo": "MemAvailable: 8388608 kB", "/sys/fs/cgroup/memory.max": str(GIB)})
    assert machine.memory_bytes() == (GIB, GIB)
    with_files(monkeypatch, {"/proc/meminfo": "MemAvailable: 1024 kB", "/sys/fs/cgroup/memory.max": "max"})
    assert machine.memory_bytes()[1] == 1 << 20


@pytest.mark.parametrize(("flags", "part"), [("", "AVX2"), ("avx2", "VNNI"), ("avx2 avx_vnni", None), ("avx2 amx_int8", None)])
def test_advice_on_the_processor(monkeypatch: pytest.MonkeyPatch, flags: str, part: str | None) -> None:
    with_files(monkeypatch, {"/proc/cpuinfo": CPUINFO.format(flags=flags + " fma")})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    report = doctor.Report()
    doctor._processor(report)
    assert len(report.advice) == (part is not None)
    assert part is None or part in report.advice[0]


def test_advice_on_memory_disk_and_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: (GIB, GIB // 2))
    monkeypatch.setattr(machine, "disk_free_bytes", lambda folder: GIB)
    monkeypatch.setattr("hasten.model.catalogue.on_disk", lambda entry: entry.draft is not None)
    report = doctor.Report()
    doctor._memory(report)
    doctor._disk(report)
    doctor._models(report)
    assert [part in " ".join(report.advice) for part in ("memory is free", "hasten rm", "hasten pull")] == [True] * 3
    assert len(report.advice) == 3
