"""A short form of benchmarks/serve_load.py: the same script, the same checks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from real import model_path
from serving import Running, running

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "serve_load.py"


def measured(server: Running, out: Path, arguments: list[str], seconds: float) -> dict[str, Any]:
    """What the script reports of a load that went well."""
    arguments = [*arguments, "--pid", str(server.process.pid), "--out", str(out)]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.slow
def test_parallel_requests_with_cancels_and_malformed_ones(server: Running, tmp_path: Path) -> None:
    arguments = ["--url", server.url, "--requests", "120", "--parallel", "12", "--distinct", "30", "--longest", "24"]
    found = measured(server, tmp_path / "load.json", arguments, 400)
    assert sum(found["requests"].values()) == 120
    assert found["requests"]["cancelled"] > 3
    assert found["compared_alone"] > 20
    server.wait_idle()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(5400)
def test_two_thousand_requests_to_a_real_model(tmp_path: Path) -> None:
    models = (f"smol={model_path('smollm2-135m')}",)
    # No limit that a pause of a busy machine could reach: what is shown here is answers, blocks and memory.
    with running("--request-timeout", "3000", "--body-timeout", "900", home=tmp_path / "home", models=models) as server:
        arguments = ["--url", server.url, "--requests", "2000", "--parallel", "32", "--distinct", "64", "--longest", "16"]
        found = measured(server, tmp_path / "load.json", arguments, 5000)
        assert sum(found["requests"].values()) == 2000
        assert found["compared_alone"] == 64
        assert found["memory_growth"] is not None
        assert found["tokens"] > 10_000
        server.wait_idle()
