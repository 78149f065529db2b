"""``hasten draft trim``: sizes of a draft head measured by replay, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.cli.main import run
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, InvalidRequest
from hasten.core.types import SamplingParams
from hasten.train import trim as find
from hasten.train.trim import Answer, Tally, replay
from test_exact import prompt_of
from test_trim import SOME, trimmed_drafter, whole_drafter
from tiny import VOCABULARY, naive_text

# ---- measuring


def constant(seconds: float) -> Callable[[int], float]:
    return lambda rows: seconds


def test_replay_accepts_what_the_target_said() -> None:
    """The draft is the target: every draft of the whole head is right, and a trimmed one is wrong where ids are missing."""
    prompt = list(prompt_of(12, 3))
    output = naive_text("llama", tuple(prompt), SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True))
    answer = Answer(prompt, output, [[token] for token in output])
    right, part = Tally(), Tally()
    replay(whole_drafter(), answer, right, constant(1e9))
    replay(trimmed_drafter(SOME), answer, part, constant(1e9))
    assert right.timed(VOCABULARY, constant(1.0)).tokens_per_round > 6
    assert part.timed(8, constant(1.0)).tokens_per_round < right.timed(VOCABULARY, constant(1.0)).tokens_per_round
    assert right.tokens < len(output)


def test_a_rate_is_tokens_over_drafting_and_verifying() -> None:
    tally = Tally(tokens=30, rows=[4, 4, 9], drafting=[0.2, 0.2, 50.0], levels=[2, 2, 4])
    found = tally.timed(7, lambda rows: rows / 10)
    assert found.level_seconds == pytest.approx(0.1)
    assert found.tokens_per_second == pytest.approx(30 / (0.8 + 1.7))
    assert found.tokens_per_round == 10


# ---- the command


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sizes", "1,x"], "--sizes takes whole numbers"),
        (["--sizes", "16384,0"], "--sizes takes numbers from 1 up, not 0"),
        (["--text", "/nowhere/text"], "cannot be read"),
        (["--prompts", "/nowhere/prompts"], "cannot be read"),
        (["--precision", "int2"], "precision must be one of"),
    ],
)
def test_wrong_use_is_told_before_a_model_is_loaded(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(["draft", "trim", *arguments]) == (1 if sentence == "cannot be read" else 2)
    assert sentence in capsys.readouterr().err


def test_prompts_are_not_sampled_as_they_say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "temperature": 1.0}\n', encoding="utf-8")
    assert run(["draft", "trim", "--prompts", str(tmp_path / "p.jsonl")]) == 1
    assert "line 1 sets temperature, and all answers are sampled alike here; leave that out." in capsys.readouterr().err


def test_the_command_shows_what_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def found(config: EngineConfig, asks: list[object], texts: list[str], sizes: list[int], progress: object) -> find.Outcome:
        asked.extend((config.model, len(asks), texts, sizes))
        rows = [find.Timed(10, 1.5, 2.0, 0.01), find.Timed(20, 2.5, 3.0, 0.02)]
        return find.Outcome(rows, rows[1], 1234, tmp_path / "trim.json")

    monkeypatch.setattr(find, "find_trim", found)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "text").write_text("Häuser", encoding="utf-8")
    assert (
        run(
            [
                "draft",
                "trim",
                "-m",
                "m",
                "--draft",
                "suffix",
                "--draft-model",
                "d",
                "--sizes",
                "10,20",
                "--text",
                str(tmp_path / "text"),
            ]
        )
        == 0
    )
    assert asked == ["m", 12, ["Häuser"], [10, 20]]
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if line.endswith("kept")] == [["20", "2.50", "3.00", "20.0", "kept"]]
    assert "1,234 tokens" in shown


def test_too_little_to_measure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find.catalogue, "resolve", lambda name, **_: type("R", (), {"name": name, "draft": None, "path": Path()})())
    with pytest.raises(ConfigError, match="No draft model is known"):
        find.find_trim(EngineConfig(model="m"), [], [])
    with pytest.raises(InvalidRequest, match="three prompts"):
        find.find_trim(EngineConfig(model="m", draft_model="d"), [], [])
