"""Exit statuses: 2 for what is wrong with a command line by itself, 1 for what a file holds and for what fails later; and the
sentences for numbers that are none and bytes that are no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_fakes import CommandLine

MISUSES = [
    ("serve --memory-budget -1", "memory_budget must be a number of gigabytes"),
    ("serve --host 10.0.0.1", "would let anybody on the network in"),
    ("serve --allow-origin x", "An origin is written"),
    ("serve -m a -m a", "Two models are called 'a'"),
    ("serve --new-key t", "--api-key-file"),
    ("serve --new-key a/b --api-key-file keys", "A tenant's name has 1 to 64 letters"),
    ("serve --new-key a! --api-key-file keys", "A tenant's name has 1 to 64 letters"),
    ("serve --trace-endpoint 127.0.0.1:4318", "A trace endpoint is written http://"),
    ("serve --replicas 2 --trace-endpoint x", "A trace endpoint is written http://"),
    ("serve --max-n 65", "max_n must be a whole number from 1 to 64, not 65"),
    ("serve --max-queue 0", "max_queue must be a whole number from 1 to 2147483647, not 0"),
    ("serve --stream-interval -1", "stream_interval must be a number from 0 to 2147483647, not -1.0"),
    ("serve --keep-alive 0", "keep_alive must be a number from 0.001 to 2147483647, not 0.0"),
    ("serve --replicas 2 --trace-endpoint http://x", "Traces are taken where one process serves"),
    ("serve --draft sufix", "did you mean 'suffix'?"),
    ("serve --draft suffix(depht=2)", "no argument 'depht'"),
    ("roofline --rows a", "--rows must be numbers with commas between them, not 'a'"),
    ("roofline --contexts -1", "--contexts must lie between 0 and 1048576, not '-1'"),
    ("roofline --on nosuch", "no machine called 'nosuch'"),
    ("roofline --acceptance 2", "--acceptance must be a number from 0 to 1"),
    ("roofline --dark", "--dark is for the picture"),
    ("bench --seconds 0", "--seconds must be more than 0"),
    ("bench --repeats 0", "--repeats must be at least 1"),
    ("bench --seed 18446744073709551616", "seed must be a whole number"),
    ("bench --temperatures 101", "--temperatures must lie between 0 and 100, not '101'"),
    ("bench --against nosuch", "no engine called 'nosuch'"),
    ("bench --ablation --never-slower", "not both"),
    ("bench --also int8 --server", "--also stands beside"),
    ("bench --also int9 --no-plots", "precision must be one of"),
    ("bench --draft none", "A comparison needs drafters"),
    ("draft trim --sizes a", "--sizes takes whole numbers"),
    ("profile --draft none", "Without drafters nothing is profiled"),
    ("profile --picture x.txt", "--picture must name"),
    ("prove --max-tokens 0", "max_tokens must be a whole number"),
    ("prove --verify block", "--verify block keeps the law of a text"),
    ("quantize m --threads -2", "threads must be a whole number"),
]


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys, tmp_path)


@pytest.mark.parametrize(("words", "part"), MISUSES)
def test_a_wrong_command_line_ends_with_status_2(command_line: CommandLine, words: str, part: str) -> None:
    done = command_line(*words.split())
    assert part in done.err
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert command_line.llm.made == []


@pytest.mark.parametrize(
    ("verb", "content", "part"),
    [
        ("roofline", "[roofline]\nrows = 'a'\n", "--rows must be numbers"),
        ("serve", "[serve]\nmemory_budget = -1\n", "memory_budget must be"),
        ("serve", "[serve]\ntrace_endpoint = 'x'\n", "A trace endpoint is written http://"),
        ("serve", "[serve]\nport = 70000\n", "70000 is not a whole number from 0 to 65535."),
        ("serve", "[serve]\nhost = '10.0.0.1'\n", "would let anybody on the network in"),
        ("prove", "[prove]\nmax_tokens = 0\n", "max_tokens must be"),
        ("bench", "[bench]\nablation = true\nnever_slower = true\n", "not both"),
        ("draft trim", "[draft.trim]\nsizes = 'a'\n", "--sizes takes"),
        ("generate -p x", "[engine]\ndraft = 'sufix'\n", "did you mean 'suffix'?"),
    ],
)
def test_a_wrong_settings_file_ends_with_status_1(
    command_line: CommandLine, tmp_path: Path, verb: str, content: str, part: str
) -> None:
    (tmp_path / "c.toml").write_text(content)
    done = command_line(*verb.split(), "--config", str(tmp_path / "c.toml"))
    assert part in done.err
    assert done.status == 1


def test_who_is_to_blame_is_found_value_by_value(command_line: CommandLine, tmp_path: Path) -> None:
    """A sound option does not make a file's mistake one of the command line."""
    (tmp_path / "c.toml").write_text("[sampling]\ntop_p = 2.0\n[engine]\nprecision = 'int2'\n")
    file = ("generate", "-p", "x", "--config", str(tmp_path / "c.toml"))
    for words, status, part in (
        (["--threads", "1"], 1, "precision must be"),
        (["--threads", "-2"], 2, "threads must be"),
        (["--precision", "int8", "--max-tokens", "5"], 1, "top_p must be"),
        (["--precision", "int8", "--max-tokens", "0"], 2, "max_tokens must be"),
        (["--precision", "int8", "--top-p", "1"], 0, "exact"),
    ):
        done = command_line(*file, *words)
        assert part in done.err
        assert done.status == status


def test_a_variable_stands_for_its_option(command_line: CommandLine) -> None:
    assert command_line("generate", "-p", "x", HASTEN_MAX_TOKENS="0").status == 2
    assert command_line("generate", "-p", "x", HASTEN_MAX_TOKENS="many").status == 2
    assert command_line("roofline", HASTEN_ROWS="a").status == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("serve --port 80x", "'--port': '80x' is not a whole number from 0 to 65535."),
        ("serve --port 70000", "'--port': 70000 is not a whole number from 0 to 65535."),
        ("eval --problems 0", "'--problems': 0 is not a whole number of at least 1."),
        ("generate --max-tokens many", "'--max-tokens': 'many' is not a whole number."),
        ("generate --temperature warm", "'--temperature': 'warm' is not a number."),
        ("serve --log-format xml", "'xml' is not one of 'text', 'json'."),
    ],
)
def test_a_number_that_is_none_is_told_which_ones_are(command_line: CommandLine, words: str, sentence: str) -> None:
    done = command_line(*words.split())
    assert done.status == 2
    assert sentence in done.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "caf\udce9"], "The prompt on the command line is not UTF-8 text (byte 4 is 0xe9)"),
        (["generate", "-p", "é\udcff"], "The prompt on the command line is not UTF-8 text (byte 3 is 0xff)"),
        (["generate", "-p", "x", "--system", "\udce9"], "--system is not UTF-8 text (byte 1 is 0xe9)"),
        (["chat", "--system", "\udce9"], "--system is not UTF-8 text (byte 1 is 0xe9)"),
        (["generate", "-p", "x", "--stop", "a", "--stop", "\udce9"], "--stop is not UTF-8 text (byte 1 is 0xe9)"),
    ],
)
def test_an_argument_that_is_no_text_is_told_as_standard_input_is(
    command_line: CommandLine, arguments: list[str], sentence: str
) -> None:
    """Python hands on bytes that are no UTF-8 as halves of surrogate pairs."""
    done = command_line(*arguments)
    assert done.err == f"hasten: {sentence}; convert it, for example with iconv.\n"
    assert done.status == 2
    assert command_line.llm.made == []


def test_a_file_may_have_a_name_that_is_no_text(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "p\udce9.jsonl").write_text('{"prompt": "x"}\n')
    assert command_line("generate", "--prompts", str(tmp_path / "p\udce9.jsonl")).status == 0
