"""What a stranger's machine needs: pins that satisfy the ranges, a licence, and set-up scripts that say what is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = ("scripts/setup.sh", "scripts/try.sh", "scripts/test.sh")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    every = [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]
    return [found for found in map(Requirement, every) if found.name != "hasten"]


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    pinned = pins()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier, f"{requirement.name} has no range in pyproject.toml"
        assert pinned[name] in requirement.specifier, f"{name}=={pinned[name]} is outside {requirement.specifier}"


def test_no_cuda_package_is_pinned_or_asked_for() -> None:
    names = [*pins(), *(canonicalize_name(requirement.name) for requirement in requirements())]
    assert not [name for name in names if name.startswith(("nvidia", "cuda")) or name in ("triton", "cupy")]


def test_the_licence_is_there() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_console_script_is_the_command_line() -> None:
    from hasten.__main__ import main

    assert PROJECT["scripts"] == {"hasten": "hasten.__main__:main"}
    for point in entry_points(group="console_scripts", name="hasten"):
        assert point.load() is main


def test_the_readme_opens_with_the_two_commands() -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
    assert any(line.startswith("sh scripts/try.sh") for line in commands[:4]), commands[:4]
    assert any(line.startswith("sh scripts/test.sh") for line in commands[:4]), commands[:4]


def test_continuous_integration_runs_the_readmes_command() -> None:
    assert "sh scripts/test.sh" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci/run", os.X_OK)


posix = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


@posix
@pytest.mark.parametrize("script", [*SCRIPTS, ".ci/run"])
def test_scripts_are_well_formed(script: str) -> None:
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", script], cwd=ROOT, check=True)


@posix
def test_an_old_python_is_told(tmp_path: Path) -> None:
    old = stub(tmp_path / "python", 'case "$2" in *version_info*) exit 1;; esac')
    done = setup("test.sh", tmp_path, PYTHON=str(old))
    assert done.returncode == 1
    assert done.stderr == f"hasten: {old} is not Python 3.11 or newer; set PYTHON to one that is.\n"


@posix
def test_no_python_at_all_is_told(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "cat", "cksum", "printf"):
        found = shutil.which(name)
        if found is not None:
            (tools / name).symlink_to(found)
    done = setup("try.sh", tmp_path, PATH=str(tools), PYTHON="")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed and none was found" in done.stderr


@posix
def test_a_python_without_venv_is_told(tmp_path: Path) -> None:
    bare = stub(tmp_path / "python", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = setup("test.sh", tmp_path, PYTHON=str(bare))
    assert done.returncode == 1
    assert "venv module" in done.stderr
    assert done.stderr.count("hasten: ") == 1


@posix
def test_a_failed_installation_is_told_and_tried_again(tmp_path: Path) -> None:
    fake = environment(tmp_path, 'case "$*" in *"pip install"*) echo asked >>"$ASKED"; exit 1;; esac')
    for _ in range(2):
        done = setup("test.sh", tmp_path, ASKED=str(fake))
        assert done.returncode == 1
        assert "the installation failed" in done.stderr
    assert fake.read_text().count("asked") == 2


@posix
def test_a_second_run_installs_nothing_and_arguments_arrive(tmp_path: Path) -> None:
    log = environment(tmp_path, 'printf "%s|" "$@" >>"$ASKED"; echo >>"$ASKED"')
    assert setup("test.sh", tmp_path, "-k", "two words", ASKED=str(log)).returncode == 0
    assert setup("try.sh", tmp_path, "Why is it so?", "--max-tokens", "5", ASKED=str(log)).returncode == 0
    assert setup("try.sh", tmp_path, ASKED=str(log)).returncode == 0
    calls = [line for line in log.read_text().splitlines() if not line.startswith("-c|")]
    assert calls[0].startswith("-m|pip|install|")
    assert "|--constraint|constraints.txt|--editable|.[test]|" in calls[0]
    assert calls[1:] == [
        "-m|pytest|-n|auto|--dist|worksteal|-k|two words|",
        "-m|hasten|generate|--prompt|Why is it so?|--max-tokens|5|",
        "-m|hasten|generate|--prompt|Why is the sky blue?|",
    ]


def setup(script: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script of ours from another directory, with its environment in ``folder``."""
    return subprocess.run(
        [str(shutil.which("sh")), str(ROOT / "scripts" / script), *arguments],
        cwd=folder,
        env={**os.environ, "VENV": str(folder / "venv"), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def stub(path: Path, special: str) -> Path:
    """A Python that does what ``special`` says and otherwise succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{special}\nexit 0\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def environment(folder: Path, special: str) -> Path:
    """A virtual environment whose Python is a stub; returns the file that the stub writes to."""
    stub(folder / "venv" / "bin" / "python", special)
    return folder / "asked"


def test_this_python_is_one_that_is_supported() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert sys.version_info >= (3, 11)
