"""The build itself: into any folder, with or without a compiler, and the kernels under address and undefined-behaviour checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.core.config import EngineConfig
from hasten.core.errors import ModelNotFound
from hasten.engine.loading import load_engine
from hasten.native import build
from hasten.native.loader import load, status

TESTS = Path(__file__).resolve().parent


def test_no_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler; install"):
        build.build(tmp_path)
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    with pytest.raises(build.BuildError, match="did not start"):
        build.build(tmp_path)


def test_a_failing_compiler_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "fake-compiler"
    fake.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(build.BuildError, match="broken"):
        build.build(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_every_source_is_built_and_each_level_once() -> None:
    units = build.units()
    assert {unit.source for unit in units} <= {path.name for path in build.SOURCES.glob("*.cpp")}
    assert len({(unit.source, unit.level) for unit in units}) == len(units)


def in_a_new_process(environment: dict[str, str], code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}, timeout=60
    )
    return done.stdout.strip()


def test_environment_chooses_level_and_library() -> None:
    if load() is None:
        pytest.skip(f"native kernels: {status()['reason']}")
    code = "from hasten.native.loader import load, status; print(load() and load().isa, status().get('reason'))"
    assert in_a_new_process({"HASTEN_NATIVE_ISA": "generic"}, code).startswith("generic")
    assert "switched off" in in_a_new_process({"HASTEN_NATIVE": "off"}, code)
    assert "not built" in in_a_new_process({"HASTEN_NATIVE_LIBRARY": "/nowhere/x.so"}, code)
    assert in_a_new_process({"HASTEN_NATIVE_LIBRARY": __file__}, code).startswith("None")


def test_loading_a_model_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for mode, said in (("auto", 0 if load() else 1), ("off", 1)):
        monkeypatch.setenv("HASTEN_NATIVE", mode)
        caplog.clear()
        with pytest.raises(ModelNotFound):
            load_engine(EngineConfig(model="no-such-model"))
        assert [line.count("No native kernels (") for line in caplog.messages] == [1] * said


SANITIZED = {
    "products": ("linear", "grouped", "top", "layers", "sketch", "drawn"),
    "others": ("feedback", "rows", "attention", "attention8"),
}


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that runs the kernels with AddressSanitizer and UndefinedBehaviorSanitizer."""
    if load() is None:
        pytest.skip(f"native kernels: {status()['reason']}")
    library = build.build(tmp_path_factory.mktemp("sanitized"), sanitize=True)
    found = subprocess.run([*build.find_compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    runtime = Path(found.stdout.strip())
    if not runtime.is_absolute():
        pytest.skip("this compiler has no shared AddressSanitizer to preload")
    return {
        **os.environ,
        "LD_PRELOAD": str(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "HASTEN_NATIVE_LIBRARY": str(library),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernels", SANITIZED)
def test_kernels_under_sanitizers(kernels: str, sanitized: dict[str, str]) -> None:
    """The other kernel tests, run again in processes with sanitizers; on AMX's kernels too, with emulated tiles."""
    files = [str(TESTS / f"test_native_{name}.py") for name in SANITIZED[kernels]]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-n", "auto", *files]
    done = subprocess.run(command, capture_output=True, text=True, env=sanitized, cwd=TESTS.parent, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "passed" in done.stdout
