"""What keeps a server from starting is told to its operator in the sentence that says what to do."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from pathlib import Path

import pytest

from hasten.cli.main import run as command_line
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, HastenError, ModelNotFound
from hasten.serve import run
from hasten.serve.hangup import Hangups
from hasten.serve.keys import new_key
from hasten.serve.run import Settings, serve
from serving import running


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
    assert sentence.endswith(" may take 1e-06 GB; raise --memory-budget.\n")


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


# Becomes ``hasten serve`` with the rest of its arguments. It gets SIGHUP as soon as the verb has begun, and again when the keys
# have just been read, with the last of them gone meanwhile.
HUNG_UP = """
import os, signal, sys
import hasten.cli.serve as verb

limits_of = verb.limits_of
def hung_up_at_once(options):
    os.kill(os.getpid(), signal.SIGHUP)
    from hasten.serve import run
    policy_of = run.policy_of
    def hung_up(settings):
        found = policy_of(settings)
        settings.api_key_file.write_text("# none\\n")
        os.kill(os.getpid(), signal.SIGHUP)
        return found
    run.policy_of = hung_up
    return limits_of(options)
verb.limits_of = hung_up_at_once

from hasten.cli.main import run
sys.exit(run(sys.argv[4:]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signal")
def test_a_hangup_while_it_starts_does_not_end_it_and_is_made_up_for(tmp_path: Path, tiny_model: Path) -> None:
    key = new_key(tmp_path / "keys", "anna")
    arguments = ("--api-key-file", str(tmp_path / "keys"))
    with running(*arguments, home=tmp_path, models=(f"tiny={tiny_model}",), before=(sys.executable, "-c", HUNG_UP)) as server:
        assert server.get("/version", headers={"authorization": f"Bearer {key}"}).status_code == 401
    assert [line for line in server.log if " WARNING " in line and "has no keys" in line]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signal")
def test_hangups_are_kept_until_somebody_acts_on_them() -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGHUP)
    with Hangups() as hangups:
        for _ in range(2):
            signal.raise_signal(signal.SIGHUP)
        with hangups.told(lambda: told.append("x")):
            assert told == ["x"]
            signal.raise_signal(signal.SIGHUP)
            assert told == ["x", "x"]
        signal.raise_signal(signal.SIGHUP)
        assert told == ["x", "x"]
    assert signal.getsignal(signal.SIGHUP) == before
