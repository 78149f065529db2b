"""The files of deploy/ name flags, extras, paths and routes that there are. Docker is not run, and of systemd its checker only."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hasten.cli.serve import serve
from hasten.native.loader import load
from hasten.serve.app import OPEN_PATHS
from hasten.serve.limits import Limits

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
UNIT = (ROOT / "deploy" / "hasten.service").read_text(encoding="utf-8")
FLAGS = {name for parameter in serve.params for name in parameter.opts}


def extras(text: str) -> set[str]:
    return {name for found in re.findall(r"(?:hasten|\.)\[([a-z,]+)\]", text) for name in found.split(",")}


def test_commands_have_flags_that_there_are() -> None:
    entry = json.loads(DOCKERFILE.split("ENTRYPOINT ", 1)[1])
    start = shlex.split(re.search(r"^ExecStart=(.+)$", UNIT, re.MULTILINE)[1])  # type: ignore[index]
    for command in (entry, start):
        assert command[:2] == ["/opt/hasten/bin/hasten", "serve"]
        assert {word for word in command if word.startswith("-")} <= FLAGS
    assert "--api-key-file" in entry  # it listens on every address


def test_extras_are_those_of_the_package() -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
    assert extras(DOCKERFILE) == {"structured", "trace"}
    assert extras(DOCKERFILE) | extras(UNIT) <= known


def test_the_health_check_asks_an_open_path() -> None:
    assert re.search(r"http://127\.0\.0\.1:8000(/[a-z/]*)", DOCKERFILE)[1] in OPEN_PATHS  # type: ignore[index]


def test_the_image_has_a_fixed_base_kernels_and_a_user_who_is_not_root() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {"${BASE}"}
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?$", DOCKERFILE, re.MULTILINE)
    check = re.search(r"hasten/bin/python -c \"(.+)\"$", DOCKERFILE, re.MULTILINE)
    assert check is not None
    assert subprocess.run([sys.executable, "-c", check[1]], check=False).returncode == (0 if load() is not None else 1)
    last = DOCKERFILE.rsplit("FROM ", 1)[1]
    user = re.search(r"^USER (\d+)$", last, re.MULTILINE)
    assert user is not None
    assert int(user[1]) > 0
    assert re.search(r"^VOLUME /data$", last, re.MULTILINE)
    assert "HASTEN_HOME=/data" in last


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "hasten.service"
    unit.write_text(UNIT.replace("/opt/hasten/bin/hasten", sys.executable), encoding="utf-8")
    done = subprocess.run([checker, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "hasten.service" in line]
    command = [checker, "security", "--offline=true", "--threshold=20", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_installation_needs_goes_into_the_build_and_nothing_secret() -> None:
    lines = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept >= {"src", "setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in kept)


def test_there_is_time_to_finish_what_runs() -> None:
    for found in (re.search(r"--stop-timeout (\d+)", DOCKERFILE), re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)):
        assert found is not None
        assert float(found[1]) > Limits().drain_timeout
