"""``hasten bench`` as it is typed: what goes on with a folder's results and what does not, what is refused, what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.bench.session import read_rows
from hasten.cli.main import run

Bench = Callable[..., int]


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Bench:
    """Runs ``hasten bench`` on the tiny model, with results in the test's own folder; returns the exit status."""

    def typed(*arguments: str) -> int:
        given = ["bench", "-m", str(tiny_model), "--draft", "trie", "--no-plots", "--out", str(tmp_path / "out"), *arguments]
        return run([*given, *([] if {"--prompts", "--workload"} & {*arguments} else ["--workload", "synthetic:8x4"])])

    return typed


def rows(folder: Path, kind: str = "run") -> list[dict[str, object]]:
    return [row for row in read_rows(folder / "out" / "results.jsonl") if row["kind"] == kind]


OTHERS = (
    ("--temperatures", "0.8"),
    ("--threads", "1"),
    ("--verify", "rejection"),
    ("--cache-tokens", "2048"),
    ("--max-rows", "32"),
    ("--no-prefix-cache",),
    ("--context-length", "256"),
    ("--draft", "trie(most_counts=999)"),
    ("--control", "goodput"),
)


def test_results_of_other_settings_are_never_shown_as_these(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--threads", "2") == 0
    first = rows(tmp_path)
    assert bench("--threads", "2") == 0, "the same goes on"
    capsys.readouterr()
    for other in OTHERS:
        assert bench("--threads", "2", *other) == 1, other
        assert "holds results of other settings" in capsys.readouterr().err, other
    assert rows(tmp_path) == first


def test_an_edited_file_of_prompts_is_another_comparison(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.jsonl"
    for text, status in (("Count to ten.", 0), ("Count to ten.", 0), ("Count to six.", 1)):
        mine.write_text(json.dumps({"prompt": text}) + "\n", encoding="utf-8")
        assert bench("--prompts", str(mine), "--max-tokens", "4") == status
    assert "other settings (loads)" in capsys.readouterr().err


def test_a_load_that_is_sampled_says_so_in_its_name(bench: Bench, tmp_path: Path) -> None:
    assert bench("--temperatures", "0.8") == 0
    assert {row["load"] for row in rows(tmp_path)} == {"8 + 4 random tokens, T=0.8"}


def test_a_file_of_prompts_is_asked_as_the_options_say(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({"prompt": f"Count to {count}."}) + "\n" for count in range(3)), encoding="utf-8")
    assert bench("--prompts", str(mine), "--max-tokens", "4", "--per-group", "2") == 0
    assert [row["task"] for row in rows(tmp_path) if row["mode"] == "plain"] == ["1", "2"]
    mine.write_text('{"prompt": "one"}\n{"prompt": "two", "temperature": 1.0, "seed": 3}\n', encoding="utf-8")
    assert bench("--prompts", str(mine), "--restart") == 1
    assert f"{mine}, line 2 sets temperature, seed, and all answers" in capsys.readouterr().err


def test_who_cannot_answer_says_why(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was measured because nobody has room for the question, and more time would not help."""
    for again in range(2):
        assert bench("--workload", "synthetic:3000x4", "--context-length", "64", "--cache-tokens", "2048") == 1, again
        said = capsys.readouterr().err
        assert "plain is left out: Prompt is too long" in said
        assert "more time" not in said


def test_a_prompt_of_the_user_that_is_too_long_is_named(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"prompt": "Count."}\n' + json.dumps({"prompt": "Count. " * 300, "id": "q2"}) + "\n", encoding="utf-8")
    given = ("--prompts", str(mine), "--context-length", "64", "--cache-tokens", "2048")
    assert bench(*given) == 1
    said = capsys.readouterr().err
    assert f"{mine}, line 2 (id q2): Prompt is too long" in said
    assert "left out" not in said
    assert rows(tmp_path) == []
    assert bench(*given, "--per-group", "1") == 0


def test_who_stops_before_the_first_result_is_not_told_to_give_more_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("hasten.bench.session.Session.run", interrupted)
    assert bench() == 130
    assert "Nothing measured yet; the same command begins again." in capsys.readouterr().err


def test_perplexities_are_left_out_where_nobody_wants_them(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASTEN_SHARED_DATA", raising=False)
    assert bench("--precision", "fp32", "--also", "fp64", "--perplexity-chunks", "0") == 0
    assert rows(tmp_path, "end")
    assert rows(tmp_path, "perplexity") == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--seconds", "0"), "--seconds must be more than 0, not 0"),
        (("--draft", "suffix", "--draft-model", "d"), "--draft suffix makes no use of --draft-model"),
        (
            ("--draft", "suffix", "--draft-model", "d", "--against", "llama.cpp", "--perplexity-chunks", "0"),
            "There is no model 'no/such/model.gguf'",
        ),
        (("--seconds", "-3"), "--seconds must be more than 0, not -3"),
        (("--out", "{here}/file/folder"), "/file/folder' cannot be written (Not a directory); give another folder"),
        (("--out", "{here}"), "' holds other files and no results of a comparison; give a new or an empty folder"),
        (("--workload", "humaneval"), "humaneval_dev.jsonl is not part of Hasten; set HASTEN_SHARED_DATA"),
        (("--workload", "synthetic:8x4", "--workload", "spec-bench"), "spec_bench_dev.jsonl is not part of Hasten"),
        (("--workload", "humanevil"), "did you mean 'humaneval'?"),
        (("--also", "int8"), "wikitext2_test_part.txt is not part of Hasten; .* leave perplexities out by --perplexity-chunks 0"),
        (("--against", "transformers"), "wikitext2_test_part.txt is not part of Hasten"),
        (("--also", "int8", "--perplexity-chunks", "0"), "There is no model 'no/such/model.gguf'"),
        (("--workload", "humaneval", "--prompts", "{here}/file"), "humaneval_dev.jsonl is not part of Hasten"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    arguments: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HASTEN_SHARED_DATA", raising=False)
    (tmp_path / "file").write_text('{"prompt": "one"}', encoding="utf-8")
    given = [argument.format(here=tmp_path) for argument in arguments]
    assert run(["bench", "-m", "no/such/model.gguf", "--no-plots", "--out", str(tmp_path / "out"), *given]) in (1, 2)
    said = capsys.readouterr().err
    assert all(part in said for part in sentence.split(" .* "))
