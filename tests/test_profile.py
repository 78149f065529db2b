"""``hasten profile``: tables, JSON and pictures of a curve, and what it says where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hasten.engine.loading as loading
from hasten.cli.main import run
from hasten.cli.profile import facts
from hasten.control.cost import CostCurve
from hasten.control.profile import Profile

CURVE = CostCurve.measured({1: 0.010, 2: 0.011, 8: 0.014, 16: 0.02, 64: 0.07}, {1: 1e-6, 64: 4e-6}, 128)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Loading is replaced; the list holds (config, redo) of each call."""
    calls: list[Any] = []

    def load(config: Any, progress: Any, redo: bool) -> Any:
        calls.append((config, redo))
        profiles = {"target": Profile(CURVE, "measured now", 1.5), "lm": Profile(CostCurve(), "measured now", 0.0)}
        return SimpleNamespace(model="tiny", profiles=profiles)

    monkeypatch.setattr(loading, "load_engine", load)
    return calls


def test_the_table(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", "-m", "tiny", "--redo"]) == 0
    out = capsys.readouterr().out
    assert asked[0][1] is True
    for words in ("tiny: ms a pass", "CONTEXT 128", "CONTEXT 1024", "floor 10.00 ms", "knee  9 rows", "measured now", "too small"):
        assert words in out


def test_json(asked: list[Any]) -> None:
    found = facts(Profile(CURVE, "kept", 0.1))
    assert found["rows"] == [1, 2, 8, 16, 64]
    assert found["seconds"] == pytest.approx([0.010, 0.011, 0.014, 0.02, 0.07])
    assert found["knee_rows"] == 9
    assert run(["profile", "-m", "tiny", "--json"]) == 0


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture(asked: list[Any], suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    path = tmp_path / f"curve.{suffix}"
    assert run(["profile", "-m", "tiny", "--picture", str(path)]) == 0
    assert path.stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--picture", "curve.gif"], ".png or .svg"), (["--picture", "/no/where/x.png"], "no folder"), (["--draft", "none"], "none")],
)
def test_what_cannot_be_is_told_before_loading(
    arguments: list[str], sentence: str, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", "-m", "tiny", *arguments]) == (1 if sentence == "no folder" else 2)
    assert sentence in capsys.readouterr().err
    assert not asked


def test_without_matplotlib(asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["profile", "-m", "tiny", "--picture", "x.png"]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not asked
