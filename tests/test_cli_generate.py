"""`hasten generate`: where prompts come from, how they are rendered, and what is printed where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_fakes import CommandLine, FakeLLM
from hasten.cli import machine
from hasten.cli.generate import InOrder
from hasten.cli.prompts import SAMPLING_FIELDS, collect, parse_line
from hasten.core.errors import InvalidRequest
from hasten.core.types import SamplingParams

REPLY = FakeLLM.reply
ISSUE_KEYS = {"id", "text", "tokens", "finish_reason", "usage", "timing", "speed", "speculation", "exact", "precision", "model"}


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    return CommandLine(monkeypatch, capsys, tmp_path)


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_one_prompt_streams_and_accounts(command_line: CommandLine) -> None:
    done = command_line("generate", "-m", "some-model", "-p", "Why?", "--max-tokens", "5", "--temperature", "0.5", "--seed", "9")
    assert done.status == 0
    assert done.out == "The sky is blue because\n"
    assert done.err.count("\n") == 1
    for part in ("5 tokens", "40.0 tok/s", "1.60x plain", "12 of 18 guesses right", "exact", "some-model int8", "length limit"):
        assert part in done.err
    llm = command_line.made
    assert llm.closed
    assert llm.config.model == "some-model"
    assert llm.params == [SamplingParams(max_tokens=5, temperature=0.5, seed=9)]


def test_the_prompt_needs_no_name(command_line: CommandLine) -> None:
    command_line("generate", "Why?")
    assert command_line.made.asked == ["<user>Why?"]
    for other in (["-p", "x"], ["--prompts", "x.jsonl"]):
        done = command_line("generate", "Why?", *other)
        assert done.status == 2
        assert done.err.startswith("hasten: Give")


def test_no_colour_codes_when_not_a_terminal(command_line: CommandLine) -> None:
    done = command_line("generate", "-p", "x")
    assert "\x1b" not in done.out + done.err


def test_the_chat_template_is_applied_unless_raw(command_line: CommandLine) -> None:
    command_line("generate", "-p", "Why?")
    assert command_line.made.asked == ["<user>Why?"]
    command_line.llm.made.clear()
    command_line("generate", "-p", "Why?", "--raw")
    assert command_line.made.asked == ["Why?"]
    command_line.llm.made.clear()
    command_line.llm.template = False
    command_line("generate", "-p", "Why?")
    assert command_line.made.asked == ["Why?"]


def test_standard_input(command_line: CommandLine) -> None:
    assert command_line("generate", stdin="two\nlines\n").out == REPLY + "\n"
    assert command_line.made.asked == ["<user>two\nlines"]
    command_line.llm.made.clear()
    command_line("generate", "--raw", stdin="kept \n")
    assert command_line.made.asked == ["kept \n"]


def test_standard_input_is_utf_8_whatever_the_locale(command_line: CommandLine) -> None:
    assert command_line("generate", stdin="grün\r\nblau\n").status == 0
    assert command_line.made.asked == ["<user>grün\nblau"]
    command_line.llm.made.clear()
    for arguments in ([], ["--raw"], ["--prompts", "-"]):
        done = command_line("generate", *arguments, stdin=b"h\xff\xfe\n")
        assert done.status == 1
        assert "Standard input is not UTF-8 text (byte 2 is 0xff)" in done.err
    assert command_line.llm.made == []


@pytest.mark.parametrize("arguments", [[], ["-p", ""], ["-p", "  \n"], ["--raw"]])
def test_an_empty_prompt_is_refused(command_line: CommandLine, arguments: list[str]) -> None:
    done = command_line("generate", *arguments, stdin="")
    assert done.status == (2 if "-p" in arguments else 1)
    assert "empty" in done.err
    assert command_line.llm.made == []


def test_json_has_what_was_promised(command_line: CommandLine) -> None:
    done = command_line("generate", "-p", "x", "--json")
    assert done.out.count("\n") == 1
    row = json.loads(done.out)
    assert set(row) >= ISSUE_KEYS
    assert set(row["usage"]) >= {"prompt_tokens", "completion_tokens"}
    assert set(row["timing"]) == {"load_s", "prefill_s", "decode_s"}
    assert set(row["speed"]) == {"tokens_per_second", "plain_tokens_per_second", "speedup"}
    assert set(row["speculation"]) == {"rounds", "drafted", "accepted", "by_drafter"}
    assert row["speculation"]["by_drafter"] == {"lm": {"drafted": 6, "accepted": 4}, "suffix": {"drafted": 12, "accepted": 8}}
    assert row["text"] == REPLY
    assert done.err == ""


def test_json_keeps_characters_and_stays_on_one_line(command_line: CommandLine) -> None:
    command_line.llm.reply = 'tab\t "quote" \n newline é 漢 \x1b[31m'
    done = command_line("generate", "-p", "x", "--json")
    assert json.loads(done.out)["text"] == command_line.llm.reply
    assert "漢" in done.out
    assert done.out.count("\n") == 1


def test_text_that_is_piped_is_not_touched(command_line: CommandLine) -> None:
    command_line.llm.reply = "a\tb [bold]c[/bold] :smile: \x1b[31mred" + " long" * 60
    assert command_line("generate", "-p", "x").out == command_line.llm.reply + "\n"


def test_several_prompts_keep_their_order_and_ids(command_line: CommandLine, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "p.jsonl",
        {"prompt": "first", "id": "a"},
        "",
        {"turns": ["second", "never asked"], "question_id": 81, "category": "writing", "reference": ["r"], "max_tokens": 2},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "third"}], "temperature": 0.7, "seed": 3},
        {"task_id": "H/0", "prompt": "def f():", "entry_point": "f", "canonical_solution": "", "test": ""},
    )
    command_line.llm.order = staticmethod(lambda count: list(reversed(range(count))))
    done = command_line("generate", "--prompts", file, "--json", "--max-tokens", "4")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["id"] for row in rows] == ["a", 81, "request-2", "H/0"]
    assert [len(row["tokens"]) for row in rows] == [4, 2, 4, 4]
    llm = command_line.made
    assert llm.asked[::-1] == ["<user>first", "<user>second", "<system>s<user>third", "<user>def f():"]
    assert llm.params[1] == SamplingParams(max_tokens=4, temperature=0.7, seed=3)


def test_messages_may_have_parts_and_calls_of_tools(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    calls = [*parts, {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}]
    for messages in (parts, calls):
        (item,) = collect(None, lines(tmp_path / "p.jsonl", {"messages": messages}), SamplingParams(), False)
        assert item.messages == messages


def test_several_prompts_as_text(command_line: CommandLine, tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "x", "id": 7}, {"prompt": "y", "max_tokens": 2})
    done = command_line("generate", "--prompts", file)
    assert done.out == f"--- 7 (1/2)\n{REPLY}\n\n--- 2/2\nThe sky\n\n"
    assert "2 prompts" in done.err


def test_the_system_message(command_line: CommandLine, tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "y"}]
    file = lines(tmp_path / "p.jsonl", {"prompt": "x"}, {"messages": own[1:]}, {"messages": own})
    assert command_line("generate", "--system", "Be brief.", "--prompts", file).status == 0
    assert command_line.made.asked == ["<system>Be brief.<user>x", "<system>Be brief.<user>y", "<system>Own.<user>y"]


def test_more_threads_than_the_machine_has(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "usable_threads", lambda: 2)
    assert command_line("generate", "-p", "x", "--threads", "2").status == 0
    assert caplog.messages == []
    assert command_line("generate", "-p", "x", "--threads", "1000").status == 0
    assert "1000 threads are more than the 2 that this process may use" in caplog.messages[0]


@pytest.mark.parametrize("verb", ["profile", "quantize", "serve"])
def test_every_verb_tells_of_too_many_threads(
    verb: str, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "usable_threads", lambda: 2)
    model = str(tmp_path / "no model.gguf")
    given = [verb, *([model] if verb == "quantize" else ["-m", model])]
    assert command_line(*given, "--threads", "3").status == 1
    assert "3 threads are more than the 2" in caplog.messages[0]


@pytest.mark.parametrize("verb", ["generate", "serve"])
@pytest.mark.parametrize("draft", ["none", "suffix", "suffix+recycling", "lm(model=other)", "auto+lm(model=other)"])
def test_a_draft_model_that_nobody_takes_is_refused(verb: str, draft: str, command_line: CommandLine) -> None:
    given = ("-p", "x") if verb == "generate" else ()
    done = command_line(verb, *given, "--draft", draft, "--draft-model", "/does/not/exist")
    assert done.status == 2
    assert f"--draft {draft} makes no use of --draft-model" in done.err
    assert command_line.llm.made == []


@pytest.mark.parametrize("draft", ["auto", "lm", "suffix+foreign", "auto+lm(width=2)", "lm(model=other)+foreign"])
def test_a_draft_model_that_somebody_takes_is_passed_on(draft: str, command_line: CommandLine) -> None:
    done = command_line("generate", "-p", "x", "--draft", draft, "--draft-model", "m")
    assert done.status == 0, done.err
    assert command_line.made.config.draft_model == "m"


def test_settings_for_other_calls_rest(command_line: CommandLine) -> None:
    """Log-probabilities are for --json, a system message for chat templates."""
    done = command_line("generate", "-p", "x", "--raw", HASTEN_LOGPROBS="2", HASTEN_SYSTEM="Be brief.")
    assert done.status == 0, done.err
    assert command_line.made.params[0].logprobs is None
    assert command_line.made.asked == ["x"]
    command_line.llm.made.clear()
    assert command_line("generate", "-p", "x", "--json", HASTEN_LOGPROBS="2", HASTEN_SYSTEM="Be brief.").status == 0
    assert command_line.made.params[0].logprobs == 2
    assert command_line.made.asked == ["<system>Be brief.<user>x"]


@pytest.mark.parametrize(
    ("row", "arguments", "part"),
    [
        ({"messages": [{"role": "user", "content": "y"}]}, ["--raw"], "--raw leaves out"),
        ({"prompt": "y", "logprobs": 2}, [], "add --json"),
    ],
)
def test_lines_that_do_not_go_with_the_options_are_refused(
    row: dict[str, Any], arguments: list[str], part: str, command_line: CommandLine, tmp_path: Path
) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "x"}, row)
    done = command_line("generate", "--prompts", file, *arguments)
    assert done.status == 1
    assert f"{file}, line 2: " in done.err
    assert part in done.err
    assert command_line.llm.made == []


def test_a_draft_model_of_the_settings_rests_without_drafts(command_line: CommandLine) -> None:
    assert command_line("generate", "-p", "x", "--draft", "none", HASTEN_DRAFT_MODEL="m").status == 0


def test_several_answers(command_line: CommandLine) -> None:
    done = command_line("generate", "-p", "x", "--n", "2", "--max-tokens", "2")
    assert done.out == "--- 1/1, answer 1\nThe sky\n\n--- 1/1, answer 2\nThe sky\n\n"
    assert "1 prompt · 2 answers · " in done.err
    assert len(json.loads(command_line("generate", "-p", "x", "--n", "2", "--json").out)["answers"]) == 2


def test_prompts_from_standard_input_as_lines(command_line: CommandLine) -> None:
    done = command_line("generate", "--prompts", "-", "--json", stdin='{"prompt": "x"}\n{"prompt": "y"}')
    assert done.out.count("\n") == 2


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("{", "JSON"),
        ("[1]", "list"),
        ("[" * 100_000, "JSON"),
        ({"promt": "x"}, "did you mean 'prompt'?"),
        ({"text": "x"}, "did you mean 'prompt'?"),
        ({"prompt": "x", "temprature": 1}, "did you mean 'temperature'?"),
        ({}, "exactly one"),
        ({"prompt": "x", "turns": ["y"]}, "exactly one"),
        ({"prompt": 3}, "'prompt' must be text"),
        ({"prompt": " "}, "not empty"),
        ({"turns": []}, "'turns' must be a list"),
        ({"turns": "abc"}, "'turns' must be a list"),
        ({"turns": [3]}, "'turns' must be a list"),
        ({"messages": "hi"}, "'messages' must be a list"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": ["hi"]}, "messages[0] must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0] must have content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0] has content that is a int"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text parts only"),
        ({"prompt": "x", "id": [1]}, "an id must be"),
        ({"prompt": "x", "id": True}, "an id must be"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ('{"prompt": "x", "temperature": NaN}', "temperature"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "stop": 3}, "stop must be a list"),
        ({"prompt": "x", "stop": [""]}, "at least one character"),
        ({"prompt": "x", "stop": [3]}, "stop"),
        ({"prompt": "x", "stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": [1]}, "logit_bias"),
    ],
)
def test_a_bad_line_is_named(command_line: CommandLine, tmp_path: Path, row: Any, part: str) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "fine"}, "", row)
    done = command_line("generate", "--prompts", file)
    assert done.status == 1
    assert f"{file}, line 3: " in done.err
    assert part in done.err
    assert done.err.count("\n") == 1
    assert command_line.llm.made == []


@pytest.mark.parametrize(("content", "part"), [(None, "No such file"), (b"\xff\xfe{", "UTF-8"), (b"\n\n", "no prompt")])
def test_a_bad_file_is_named(command_line: CommandLine, tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    done = command_line("generate", "--prompts", str(path))
    assert done.status == 1
    assert str(path) in done.err
    assert part in done.err


def test_a_line_that_the_model_cannot_serve_is_named(command_line: CommandLine, tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "fine"}, {"prompt": "much " * 100, "id": "b"})
    done = command_line("generate", "--prompts", file)
    assert done.status == 1
    assert f"{file}, line 2 (id b): Prompt is too long: 101 tokens > 64" in done.err
    assert command_line.made.asked == []


def test_one_source_of_prompts_only(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("generate", "-p", "x", "--prompts", lines(tmp_path / "p", {"prompt": "y"}))
    assert done.status == 2
    assert "not both" in done.err


def test_a_byte_order_mark_is_passed_over(command_line: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "x"}\r\n')
    assert command_line("generate", "--prompts", str(path)).status == 0


def test_every_sampling_field_can_be_set_on_a_line() -> None:
    row = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "logit_bias": {"5": 1.5}, "stop": ["a", "b"], "stop_token_ids": [1, 2], "max_tokens": 7,
        "ignore_eos": True, "seed": 4, "n": 2, "logprobs": 1,
    }  # fmt: skip
    assert set(row) == set(SAMPLING_FIELDS)
    params = parse_line(json.dumps({"prompt": "x", **row}), SamplingParams()).params
    for name, value in row.items():
        wanted = tuple(value) if isinstance(value, list) else {5: 1.5} if name == "logit_bias" else value
        assert getattr(params, name) == wanted
    assert parse_line('{"prompt": "x", "stop": "end"}', SamplingParams()).params.stop == ("end",)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["prompt", "messages", "turns", "id", "question_id", "category", *SAMPLING_FIELDS]) | st.text(max_size=5)


@given(st.dictionaries(KEYS, JSON_VALUES, max_size=5))
def test_any_json_is_a_prompt_or_one_sentence(row: dict[str, Any]) -> None:
    try:
        prompt = parse_line(json.dumps(row), SamplingParams())
    except InvalidRequest as problem:
        sentence = str(problem)
    else:
        sentence = ""
        assert (prompt.text is None) != (prompt.messages is None)
    assert "\n" not in sentence


@given(st.permutations(range(9)))
def test_results_are_handed_on_in_order(order: list[int]) -> None:
    out: list[int] = []
    seen: list[int] = []
    write = InOrder(lambda index, completion: out.append(index))
    for index in order:
        write(index, None)  # type: ignore[arg-type]
        seen.append(index)
        assert out == list(range(next(n for n in range(10) if n not in seen)))
    assert out == list(range(9))
