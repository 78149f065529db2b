"""`hasten doctor`: findings are complete, honest where nothing is known, and advice follows from them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli_fakes import CommandLine
from hasten.cli import doctor, machine
from hasten.model.catalogue import CATALOGUE, ResolvedModel
from hasten.model.loaders import open_source
from hasten.model.precision import FILE, FP32, INT8
from hasten.model.storage import speculator_path
from real import model_path

GIB = 1 << 30


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    monkeypatch.setattr(doctor, "MEGABYTES", 4)
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


def test_speeds_of_the_processor_are_not_told_of_another_device(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(CATALOGUE["smollm2-135m"], name=str(tiny_model))
    monkeypatch.setattr("hasten.engine.loading.choose_device", lambda name: torch.device("cuda"))
    found = doctor._reads(entry, 1e10)
    assert found == {"precision": "bf16", "device": "cuda"}
    assert doctor._said("models", "m", {"bytes": 3_000_000_000, **found}) == ("m", "3.00 GB · runs in bf16 on cuda")


def test_memory_is_timed_as_bench_times_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("hasten.bench.machine.read_bandwidth", lambda megabytes: asked.append(megabytes) or 1e9)
    for available in (None, 8 * GIB, 400 << 20, 0):
        monkeypatch.setattr(machine, "memory_bytes", lambda available=available: (8 * GIB, available))
        report = doctor.Report({"torch": {}})
        doctor._memory(report)
        assert report.sections["memory"]["read_bytes_per_second"] == 1_000_000_000
    assert asked == [256, 256, 100, 1]


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


@pytest.mark.skipif(sys.platform != "linux", reason="the folder is Linux's")
@pytest.mark.parametrize("here", [False, True])
def test_a_folder_that_cannot_be_written_is_told(here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that its disk is full. Without a model nothing can run, for none can be fetched."""
    monkeypatch.setenv("HASTEN_HOME", "/proc/hasten")
    monkeypatch.setattr("hasten.model.catalogue.on_disk", lambda entry: here)
    report = doctor.Report()
    doctor._disk(report)
    assert report.sections["disk"]["writable"] is False
    said = report.advice if here else report.problems
    assert len(report.advice + report.problems) == len(said) == 1
    assert said[0].startswith("/proc/hasten cannot be written (")
    assert "set HASTEN_HOME" in said[0]


def test_a_part_of_the_folder_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    (tmp_path / "gguf").write_text("a file where a folder belongs")
    report = doctor.Report()
    doctor._disk(report)
    assert any(said.startswith(f"{tmp_path / 'gguf'} cannot be written (") for said in report.problems)
    (tmp_path / "gguf").unlink()
    report = doctor.Report()
    doctor._disk(report)
    assert report.sections["disk"]["writable"] is True
    assert not any("written" in said for said in report.problems + report.advice)
    assert list(tmp_path.iterdir()) == []


def test_advice_on_three_bits(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """Where the draft model is here and would run in four bits; not where it has three, or its file is damaged."""
    entry = CATALOGUE["qwen2.5-coder-1.5b"]
    monkeypatch.setattr("hasten.model.catalogue.on_disk", lambda other: other.name in (entry.name, entry.draft))
    monkeypatch.setattr("hasten.model.catalogue.resolve", lambda name: replace_path(tiny_model))
    monkeypatch.setattr("hasten.model.linear_file.load", lambda: object())
    advice = "'hasten draft quantize -m qwen2.5-coder-1.5b'"

    def said() -> list[bool]:
        report = doctor.Report({"torch": {}, "memory": {}})
        doctor._models(report)
        return [advice in sentence for sentence in report.advice if "speculator" not in sentence]

    assert said() == [True]
    monkeypatch.setattr("hasten.model.kept_weights._calibrated", lambda source, precision: tiny_model)
    assert said() == []
    monkeypatch.setattr("hasten.model.kept_weights._calibrated", lambda source, precision: None)
    monkeypatch.setattr("hasten.model.catalogue.resolve", lambda name: replace_path(tiny_model.parent / "none.gguf"))
    assert said() == []


def test_advice_on_a_speculator(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path) -> None:
    """Where a model is here that is slow enough and has none; not for a damaged file."""
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    monkeypatch.setattr("hasten.model.catalogue.on_disk", lambda other: other.name in ("qwen2.5-coder-1.5b", "smollm2-135m"))
    monkeypatch.setattr("hasten.model.catalogue.resolve", lambda name: replace_path(tiny_model))

    def said() -> list[bool]:
        report = doctor.Report({"torch": {}, "memory": {}})
        doctor._models(report)
        advice = [sentence for sentence in report.advice if "speculator" in sentence]
        return ["'hasten draft train -m qwen2.5-coder-1.5b'" in sentence for sentence in advice]

    assert said() == [True]
    path = speculator_path(open_source(tiny_model).fingerprint)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert said() == []
    monkeypatch.setattr("hasten.model.catalogue.resolve", lambda name: replace_path(tiny_model.parent / "none.gguf"))
    assert said() == []


def replace_path(path: Path) -> ResolvedModel:
    return ResolvedModel("draft", path, None)
