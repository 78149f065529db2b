"""What keeps a server from starting is told to its operator in the sentence that says what to do."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from hasten.cli.main import run as command_line
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, HastenError, ModelNotFound
from hasten.serve import run
from hasten.serve.run import Settings, serve


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(run, "set_up_logging", lambda form: None)  # this process's log is pytest's


def test_a_model_beyond_the_budget_is_the_operators_error(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = command_line(["serve", "-m", f"tiny={tiny_model}", "--memory-budget", "0.000001", "--port", "0"])
    sentence = capsys.readouterr().err
    assert status == 1
    assert sentence.startswith("hasten: The model 'tiny' takes about ")
    assert sentence.endswith(" may take 0.0 GB; raise --memory-budget.\n")


def test_a_server_that_never_ran_does_not_say_that_it_finishes(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hasten")
    with pytest.raises(ModelNotFound):
        serve(Settings(("no-such-model",), EngineConfig(), port=0))
    with pytest.raises(HastenError, match="raise --memory-budget"):
        serve(Settings((f"tiny={tiny_model}",), EngineConfig(), port=0, memory_budget=1))
    assert "Stopping" not in caplog.text


def test_what_cannot_be_bound_names_the_option_that_is_at_fault() -> None:
    for host in ("192.0.2.1", "2001:db8::1", "not a host"):
        with pytest.raises(ConfigError, match="give an address of this machine as --host"):
            run._listen(host, 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="choose another --port"):
            run._listen("127.0.0.1", taken.getsockname()[1])
