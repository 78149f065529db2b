"""The way in: help without heavy imports, verbs found and suggested, and every kind of error told in one sentence."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import click
import pytest
from rich.console import Console
from rich.text import Text

import hasten
from cli_fakes import CommandLine, driver
from hasten import __version__
from hasten.cli.main import VERBS, cli
from hasten.cli.screen import answers, counting, notes, progress_on
from hasten.cli.settings import key
from hasten.core.errors import CorruptModel, ModelNotFound

HEAVY = ("torch", "numpy", "transformers", "tokenizers", "huggingface_hub", "gguf", "safetensors", "jinja2", "scipy", "rich")


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    return CommandLine(monkeypatch, capsys, tmp_path)


def test_help_lists_every_verb(command_line: CommandLine) -> None:
    done = command_line("--help")
    assert done.status == 0
    for name, row in VERBS.items():
        assert f"{name} " in done.out
        assert row.help.split()[0] in done.out
    assert command_line().out == done.out
    assert command_line("-h").out == done.out


@pytest.mark.parametrize("group", [[], ["draft"]])
def test_a_group_without_a_verb_lists_its_verbs(command_line: CommandLine, group: list[str]) -> None:
    done = command_line(*group)
    assert done.status == 0
    assert done.out == command_line(*group, "--help").out


def test_version(command_line: CommandLine) -> None:
    assert command_line("--version").out == f"hasten {__version__}\n"


@pytest.mark.parametrize("verb", [[], ["generate"], ["chat"], ["doctor"]])
def test_help_imports_nothing_heavy(verb: list[str]) -> None:
    program = (
        "import sys; from hasten.cli.main import run; status = run([*sys.argv[1:], '--help']); "
        f"print('heavy:', *sorted(set({HEAVY!r}) & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program, *verb], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_top_help_imports_no_verb() -> None:
    program = "import sys; from hasten.cli.main import run; run(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = {row.target.partition(":")[0] for row in VERBS.values()}
    assert not modules & set(done.stdout.splitlines()[-1].split())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("verb", "status", "sentence"),
    [("generate", 1, "The prompt is empty"), ("chat", 0, ""), ("draft forget", 1, "give --yes to remove without being asked")],
)
def test_a_closed_standard_input_is_an_empty_one(verb: str, status: int, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "memory.sqlite").write_text("kept")
    words = [*driver(), *verb.split()]
    environment = {**os.environ, "HASTEN_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr
    assert "our mistake" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("words", "closed", "out", "err"),
    [
        (["ls"], ">&-", False, False),
        (["--help"], ">&-", False, False),
        (["generate", "hi"], ">&-", False, True),
        (["generate", "hi"], "2>&-", True, False),
        (["generate", "hi"], "<&- >&- 2>&-", False, False),
    ],
)
def test_a_closed_output_is_one_that_nobody_reads(words: list[str], closed: str, out: bool, err: bool, tmp_path: Path) -> None:
    environment = {**os.environ, "HASTEN_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *driver(), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, bool(done.stdout), bool(done.stderr)) == (0, out, err)
    assert "our mistake" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    program = (
        "import os, sys; from hasten.cli.main import open_what_is_closed; open_what_is_closed(); "
        "sys.exit({os.readlink(f'/proc/self/fd/{number}') for number in range(3)} != {os.devnull})"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_names_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x[q4]/m[/b].gguf"
    for console in (answers(), notes()):
        console.print(name, style="dim")
    assert capsys.readouterr() == (f"{name}\n", f"{name}\n")
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_on(screen, f"Loading {name}") as progress:
        progress(f"reading {name}", 1, 2)
    with counting(screen, f"Answering with {name}", 2):
        pass
    drawn = Text.from_ansi(screen.file.getvalue()).plain  # type: ignore[attr-defined]
    assert f"reading {name}" in drawn
    assert f"Answering with {name}" in drawn


def test_a_server_without_models_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[serve]\nmodel = []\n")
    done = command_line("serve", "--config", str(tmp_path / "c.toml"))
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "A server needs a model" in done.err


def test_python_m_hasten_is_hasten() -> None:
    done = subprocess.run([sys.executable, "-m", "hasten", "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"hasten {__version__}\n"


def test_every_verb_loads_under_its_own_name() -> None:
    context = click.Context(cli)
    for name in VERBS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
        keys = [key(option) for option in command.params if isinstance(option, click.Option)]
        assert len(keys) == len(set(keys))
        assert {"config", "debug"} <= set(keys)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["genrate"], ["'genrate'", "did you mean 'generate'?", "hasten --help"]),
        (["zzz"], ["'zzz'", "known are:", "chat"]),
        (["run"], ["did you mean 'chat' or 'generate'?"]),
        (["generate", "--temp", "1"], ["'--temp'; did you mean '--temperature'?"]),
        (["chat", "--n", "2"], ["No such option '--n'"]),
        (["chat", "--logprobs", "2"], ["No such option '--logprobs'"]),
        (["draft", "build", "--n", "2"], ["No such option '--n'"]),
        (["generate", "--modle", "x"], ["--modle", "--model", "hasten generate --help"]),
        (["generate", "--max-tokens", "many"], ["--max-tokens", "many"]),
        (["generate", "--prompt"], ["--prompt"]),
        (["generate", "one", "stray"], ["stray", "hasten generate --help"]),
        (["--nonsense"], ["--nonsense"]),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(command_line: CommandLine, arguments: list[str], parts: list[str]) -> None:
    done = command_line(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert one_sentence(done.err)
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--max-tokens", "0"], "max_tokens"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "1.1"], "top_p"),
        (["--seed", "-1"], "seed"),
        (["--logprobs", "99"], "logprobs"),
        (["--stop", ""], "stop"),
        (["--precision", "int2"], "int8"),
        (["--kv-cache-dtype", "q8_0"], "int8"),
        (["--threads", "-2"], "threads"),
        (["--device", "tpu"], "cuda"),
        (["--logprobs", "3"], "add --json"),
        (["--raw", "--system", "y"], "--system"),
        (["--draft", "none", "--draft-model", "m"], "leave one of the two out"),
        (["--draft", "sufix"], "did you mean 'suffix'?"),
        (["--draft", "suffix("], "not a drafter spec"),
        (["--draft", "suffix(depht=2)"], "no argument 'depht'"),
        (["--speculation", "sometimes"], "auto, off, on"),
        (["--draft-nodes", "-1"], "from 0 to 512"),
        (["TEXT"], "Give the prompt once"),
        (["--prompts", "x"], "not both"),
    ],
)
def test_values_out_of_range_are_told_before_a_model_is_loaded(command_line: CommandLine, arguments: list[str], part: str) -> None:
    done = command_line("generate", "-p", "x", *arguments)
    assert done.status == 2
    assert one_sentence(done.err)
    assert part in done.err
    assert command_line.llm.made == []


@pytest.mark.parametrize(
    ("problem", "status", "part"),
    [
        (ModelNotFound("There is no model called 'x'."), 1, "There is no model called 'x'."),
        (CorruptModel("The file is cut short; pull it again."), 1, "cut short"),
        (CorruptModel("Tensor 'a\nb\x1b[2J' is\tunknown."), 1, "hasten: Tensor 'a b [2J' is unknown.\n"),
        (KeyboardInterrupt(), 130, "stopped."),
        (MemoryError(), 1, "memory"),
        (OSError(28, "No space left on device", "/big"), 1, "No space left on device (/big)"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
        (RuntimeError("one\ntwo\nthree"), 1, "RuntimeError: one"),
    ],
)
def test_errors_of_the_engine(command_line: CommandLine, problem: BaseException, status: int, part: str) -> None:
    command_line.llm.fail = problem
    done = command_line("generate", "-p", "x")
    assert done.status == status
    assert part in done.err
    assert one_sentence(done.err.lstrip("\n"))
    assert command_line.made.closed


@pytest.mark.parametrize("how", [{"HASTEN_DEBUG": "1"}, {}])
def test_debug_prints_the_trace(command_line: CommandLine, how: dict[str, str]) -> None:
    command_line.llm.fail = ZeroDivisionError("by zero")
    done = command_line("generate", *([] if how else ["--debug"]), "-p", "x", **how)
    assert done.status == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("hasten: ")
    assert "Traceback" not in command_line("generate", "-p", "x", HASTEN_DEBUG="0").err


def test_ctrl_c_is_a_clean_line() -> None:
    process = subprocess.Popen(
        [*driver("FakeLLM.delay_s = 0.2"), "generate", "-p", "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == "T"  # the answer has begun
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.strip() == "hasten: stopped."
    assert "Rayleigh" not in out


INTERRUPTED_IMPORT = """
import sys
from importlib import import_module
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
module, _, function = {script!r}.partition(":")
getattr(import_module(module), function)()
"""


@pytest.mark.parametrize("module", ["hasten.cli", "click", "hasten.core.config", "hasten.cli.settings"])
def test_ctrl_c_during_the_imports_is_a_clean_line(module: str) -> None:
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    program = INTERRUPTED_IMPORT.format(module=module, script=settings["project"]["scripts"]["hasten"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert done.stderr == "hasten: stopped.\n"


def test_nothing_is_imported_before_ctrl_c_is_answered() -> None:
    """The console script imports ``hasten.__main__``; an interrupt until that is done is a trace."""
    program = "import sys; before = set(sys.modules); from hasten.__main__ import main; print(*sorted(set(sys.modules) - before))"
    source = {"PYTHONPATH": str(Path(hasten.__file__).parents[1])}  # without site, which brings modules of its own
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60, check=True, env=source)
    assert done.stdout.split() == ["hasten", "hasten.__main__"]


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [*driver("FakeLLM.delay_s = 0.05"), "generate", "-p", "x", "--ignore-eos", "--max-tokens", "300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    started = time.monotonic()
    assert process.wait(timeout=30) == 1
    assert time.monotonic() - started < 4
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*driver(), "generate", "-p", "x", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert one_sentence(done.stderr)
    assert "No space left" in done.stderr


def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark() -> None:
    done = subprocess.run(
        [*driver("FakeLLM.reply = 'caf\\u00e9 \\u2713'"), "generate", "-p", "x"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": "", "HOME": "/nonexistent"},
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout == b"caf? ?\n"


def one_sentence(text: str) -> bool:
    return text.startswith("hasten: ") and text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text
