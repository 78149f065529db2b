"""Drafters of other packages that are broken: each is refused in one sentence that names the package, and nothing blames Hasten."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from hasten.cli.main import run
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.draft import DRAFTERS
from hasten.draft.base import Drafter
from hasten.engine.loading import load_engine
from hasten.engine.plugins import made

MODULE = """
from hasten.core.errors import HastenError
from hasten.core.types import DraftTree
from hasten.draft.base import Drafter

class Fine(Drafter):
    name = "fine"
    def __init__(self, length: int = 4) -> None:
        self.length = length

class Stranger:
    name = "stranger"

class Nameless(Drafter):
    pass

class Model(Drafter):
    name = "model"

class Needs(Drafter):
    name = "needs"
    def __init__(self, path: str, size: int, more: int = 1) -> None:
        pass

class Raises(Drafter):
    name = "raises"
    def __init__(self) -> None:
        raise TypeError("no weights\\nhere.")

class Refuses(Drafter):
    name = "refuses"
    def __init__(self) -> None:
        raise HastenError("Give it a database.")

class Draws(Drafter):
    name = "draws"
    draws = True

NUMBER = 5
"""
POINTS = {
    "fine": "Fine", "stranger": "Stranger", "nameless": "Nameless", "model": "Model", "needs": "Needs", "raises": "Raises",
    "refuses": "Refuses", "draws": "Draws", "number": "NUMBER", "ghost": "Ghost",
}  # fmt: skip
OF_IT = "of the package hasten-odd"
REFUSED = {
    "moved": f"The drafter 'moved' {OF_IT} cannot be imported as odd_moved:Moved "
    "(ModuleNotFoundError: No module named 'odd_moved'); repair that package, or uninstall it.",
    "ghost": f"The drafter 'ghost' {OF_IT} cannot be imported as odd_drafters:Ghost "
    "(AttributeError: module 'odd_drafters' has no attribute 'Ghost'); repair that package, or uninstall it.",
    "torn": f"The drafter 'torn' {OF_IT} cannot be imported as odd_torn:Torn (ZeroDivisionError: division by zero); "
    "repair that package, or uninstall it.",
    "number": f"The drafter 'number' {OF_IT} is no class, nor anything else that makes one: odd_drafters:NUMBER cannot be called; "
    "repair that package, or uninstall it.",
    "stranger": f"The drafter 'stranger' {OF_IT} makes a Stranger, which is no drafter; derive it from hasten.draft.base.Drafter.",
    "nameless": f"The drafter 'nameless' {OF_IT} calls itself 'none'; its class has to say name = 'nameless'.",
    "model": f"The drafter 'model' {OF_IT} cannot be called 'model': answers name the model so, where they say "
    "who guessed a token.",
    "needs": f"The drafter 'needs' {OF_IT} cannot be made without path, size; write 'needs(path=..., size=...)'.",
    "raises": f"The drafter 'raises' {OF_IT} cannot be made (TypeError: no weights here); repair that package, or leave the "
    "drafter out.",
    "refuses": "Give it a database.",
    "draws": f"The drafter 'draws' {OF_IT} says that it draws and has no method draw; write one, or leave draws out.",
}


@pytest.fixture(autouse=True)
def _odd_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pip install`` of a package with these entry points leaves behind."""
    about = tmp_path / "hasten_odd-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: hasten-odd\nVersion: 0.1\n", encoding="utf-8")
    points = {name: f"odd_drafters:{attribute}" for name, attribute in POINTS.items()}
    points |= {"moved": "odd_moved:Moved", "torn": "odd_torn:Torn"}
    rows = "".join(f"{name} = {target}\n" for name, target in points.items())
    (about / "entry_points.txt").write_text(f"[hasten.drafters]\n{rows}", encoding="utf-8")
    (tmp_path / "odd_drafters.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "odd_torn.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("odd_drafters", "odd_torn"):
        monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_drafter_is_refused_in_one_sentence(name: str, tiny_model: Path) -> None:
    with pytest.raises(Exception, match=f"^{re.escape(REFUSED[name])}$") as caught:  # whatever class: the words are its own
        load_engine(EngineConfig(model=str(tiny_model), draft=name, cache_tokens=256))
    assert isinstance(caught.value, ConfigError) or name == "refuses"


@pytest.mark.parametrize("name", ["moved", "ghost", "number", "needs"])
def test_the_command_line_does_not_blame_hasten(name: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "-m", str(tiny_model), "--draft", name, "--prompt", "hi", "--cache-tokens", "256"]) in (1, 2)
    told = capsys.readouterr().err
    assert REFUSED[name] in told
    assert "mistake" not in told


def test_a_sound_one_is_made_with_its_arguments() -> None:
    assert vars(made("fine", {"length": 3}))["length"] == 3
    assert DRAFTERS.package("fine") == "hasten-odd"
    assert DRAFTERS.package("suffix") is None
    with pytest.raises(TypeError):
        made("suffix", {"nonsense": 1})


@pytest.mark.parametrize("name", [name for name in DRAFTERS.rows if name not in ("lm", "foreign", "speculator")])
def test_our_own_are_called_what_they_are_registered_as(name: str) -> None:
    assert made(name, {}).name == name


@pytest.mark.parametrize("name", ["lm", "foreign", "speculator"])
def test_so_are_those_that_need_a_model(name: str) -> None:
    drafter: type[Drafter] = DRAFTERS.resolve(name)
    assert drafter.name == name
