"""Where values come from: option over variable over file over default; and nothing unknown or ill-typed gets through."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import click
import pytest

import hasten
from cli_fakes import CommandLine
from hasten.cli.main import VERBS, cli
from hasten.cli.options import ENGINE_HELP, SAMPLING_HELP
from hasten.cli.settings import VARIABLES, all_verbs, file_values, key, of_kubernetes, variable
from hasten.core.config import EngineConfig, SpeculationParams
from hasten.core.types import SamplingParams


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    return CommandLine(monkeypatch, capsys, tmp_path)


def test_every_variable_the_code_names_is_known() -> None:
    named: set[str] = set()
    for path in Path(hasten.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch("HASTEN_[A-Z_]+", node.value):
                named.add(node.value)
    assert {"HASTEN_HOME", "HASTEN_DEBUG"} <= named
    assert named == set(VARIABLES) | (named & {f"HASTEN_{name.upper()}" for name in (*ENGINE_HELP, *SAMPLING_HELP)})


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """The file that is read when none is named."""
    path = tmp_path / "hasten" / "config.toml"
    path.parent.mkdir()
    return path


def test_every_field_of_the_engine_is_an_option() -> None:
    assert list(ENGINE_HELP) == [field.name for field in fields(EngineConfig)]


def test_sampling_options_are_fields() -> None:
    left_out = {field.name for field in fields(SamplingParams)} - set(SAMPLING_HELP)
    assert left_out == {"logit_bias", "stop_token_ids"}
    assert set(SAMPLING_HELP) <= {field.name for field in fields(SamplingParams)}


def test_defaults_are_those_of_the_dataclasses(command_line: CommandLine) -> None:
    command_line("generate", "-p", "x")
    assert command_line.made.config == EngineConfig()
    assert command_line.made.params == [SamplingParams()]


def verbs() -> list[tuple[str, click.Command]]:
    """Every verb with the name of its table, those of ``draft`` too."""
    found = list(all_verbs(click.Context(cli)).items())
    own = [name.removeprefix("draft.") for name, _ in found if "." in name]
    assert own == ["build", "forget", "quantize", "train", "trim"]
    assert len(found) == len(VERBS) + 4
    return found


def options_of(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option) and option.name not in ("config", "debug")]


@pytest.mark.parametrize(("verb", "command"), verbs())
def test_every_option_has_its_own_variable(verb: str, command: click.Command) -> None:
    for option in options_of(command):
        assert option.envvar == variable(option) == "HASTEN_" + key(option).upper()


@pytest.mark.parametrize(("verb", "command"), verbs())
def test_every_number_can_stand_in_the_file(verb: str, command: click.Command, tmp_path: Path) -> None:
    kinds = {option: option.type for option in options_of(command)}
    numbers = [key(option) for option, kind in kinds.items() if isinstance(kind, click.types.IntParamType)]
    numbers += [key(option) for option, kind in kinds.items() if isinstance(kind, click.types.FloatParamType)]
    path = tmp_path / "c.toml"
    path.write_text(f"[{verb}]\n" + "".join(f"{name} = 2\n" for name in numbers))
    found = file_values(path, command, click.Context(command, parent=click.Context(cli)))
    assert found == {option.name: 2 for option in kinds if key(option) in numbers}


@pytest.mark.parametrize(("verb", "command"), verbs())
def test_a_variable_is_one_value_whatever_spaces_it_has(verb: str, command: click.Command) -> None:
    for option in options_of(command):
        if option.multiple:
            assert option.type.split_envvar_value("a b.txt") == ["a b.txt"], option.name


def test_precedence(command_line: CommandLine, settings: Path) -> None:
    def seed(*arguments: str, **environment: str) -> int | None:
        command_line.llm.made.clear()
        done = command_line("generate", "-p", "x", *arguments, **environment)
        assert done.status == 0, done.err
        return command_line.made.params[0].seed

    assert seed() is None
    settings.write_text("[sampling]\nseed = 1\n")
    assert seed() == 1
    settings.write_text("[generate]\nseed = 2\n[sampling]\nseed = 1\n[chat]\nseed = 5\n")
    assert seed() == 2
    assert seed(HASTEN_SEED="3") == 3
    assert seed("--seed", "4", HASTEN_SEED="3") == 4
    other = settings.with_name("other.toml")
    other.write_text("[sampling]\nseed = 6\n")
    assert seed(HASTEN_CONFIG=str(other)) == 6
    third = settings.with_name("third.toml")
    third.write_text("[sampling]\nseed = 7\n")
    assert seed("--config", str(third), HASTEN_CONFIG=str(other)) == 7


def test_config_before_the_verb(command_line: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[engine]\nmodel = 'm'\n")
    assert command_line("--config", str(path), "generate", "-p", "x").status == 0
    assert command_line.made.config.model == "m"


@pytest.mark.parametrize("place", [1, 2, 3])
def test_config_before_a_verb_of_a_group_and_behind_it(command_line: CommandLine, tmp_path: Path, place: int) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[engin]\n")
    words = ["draft", "forget"]
    words[place - 1 : place - 1] = ["--config", str(path)]
    done = command_line(*words, HASTEN_HOME=str(tmp_path / "home"))
    assert done.status == 1
    assert "no table called 'engin'" in done.err


def test_verbs_of_groups_have_settings(command_line: CommandLine, settings: Path) -> None:
    settings.write_text("[draft.trim]\nsizes = 'few'\n")
    assert "--sizes takes whole numbers" in command_line("draft", "trim").err
    assert command_line("generate", "-p", "x").status == 0
    assert command_line("generate", "-p", "x", HASTEN_SIZES="100").status == 0
    assert "--sizes takes whole numbers" in command_line("draft", "trim", HASTEN_SIZES="100,y").err
    for content, part in (
        ("[trim]\nsizes = '1'\n", "no table called 'trim'; did you mean 'draft.trim'?"),
        ("[draft]\nsizes = '1'\n", "no table called 'draft.sizes'"),
        ("[draft.trim]\nsize = '1'\n", "[draft.trim] has no key 'size'; did you mean 'sizes'?"),
        ("[draft]\ntrim = 1\n", "'draft.trim' must be a table"),
    ):
        settings.write_text(content)
        done = command_line("generate", "-p", "x")
        assert done.status == 1
        assert part in done.err


def test_every_engine_field_from_the_file(command_line: CommandLine, settings: Path) -> None:
    settings.write_text(
        "[engine]\nmodel = 'm'\ndraft = 'suffix'\ndraft_model = 'd'\nprecision = 'fp32'\ndevice = 'cpu'\nthreads = 1\n"
        "kv_cache_dtype = 'bf16'\n"
        "context_length = 128\ncache_tokens = 256\nmax_rows = 64\nmax_sequences = 2\nprefix_cache = false\nverify = 'coupled'\n"
    )
    done = command_line("generate", "-p", "x")
    assert done.status == 0, done.err
    assert command_line.made.config == EngineConfig(
        model="m", draft="suffix", draft_model="d", precision="fp32", device="cpu", threads=1, context_length=128,
        cache_tokens=256, max_rows=64, max_sequences=2, prefix_cache=False, kv_cache_dtype="bf16",
    )  # fmt: skip


def test_flags_and_lists(command_line: CommandLine, settings: Path) -> None:
    settings.write_text(
        "[engine]\nprefix_cache = false\n[sampling]\nstop = ['a b', 'c']\nignore_eos = true\n[generate]\njson = true\n"
    )
    arguments = ("generate", "-p", "x", "--max-tokens", "3")
    assert command_line(*arguments).out.startswith("{")
    assert command_line.made.params[0].stop == ("a b", "c")
    assert command_line.made.params[0].ignore_eos
    command_line.llm.made.clear()
    command_line(*arguments, "--no-ignore-eos", "--prefix-cache", "--stop", "z")
    assert command_line.made.params[0].stop == ("z",)
    assert not command_line.made.params[0].ignore_eos
    assert command_line.made.config.prefix_cache
    command_line.llm.made.clear()
    command_line(*arguments, HASTEN_STOP="two words", HASTEN_PREFIX_CACHE="1", HASTEN_IGNORE_EOS="0")
    assert command_line.made.params[0].stop == ("two words",)
    assert command_line.made.config.prefix_cache
    assert not command_line.made.params[0].ignore_eos
    settings.write_text("[sampling]\nstop = 'only'\n")
    command_line.llm.made.clear()
    command_line(*arguments)
    assert command_line.made.params[0].stop == ("only",)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[engin]\n", "did you mean 'engine'?"),
        ("model = 'x'\n", "no table called 'model'"),
        ("engine = 3\n", "must be a table"),
        ("[engine]\nmodle = 'x'\n", "[engine] has no key 'modle'; did you mean 'model'?"),
        ("[engine]\nmax-rows = 64\n", "did you mean 'max_rows'?"),
        ("[sampling]\nlogit_bias = {}\n", "no key 'logit_bias'"),
        ("[generate]\nprovenance = true\n", "[generate] has no key 'provenance'"),
        ("[chat]\nprovenence = true\n", "did you mean 'provenance'?"),
        ("[chat]\nprovenance = 'yes'\n", "must be true or false"),
        ("[sampling]\nmax_tokens = 1.5\n", "max_tokens in [sampling] must be a whole number, not 1.5"),
        ("[sampling]\nmax_tokens = '7'\n", "must be a whole number"),
        ("[sampling]\nmax_tokens = true\n", "must be a whole number"),
        ("[sampling]\ntemperature = true\n", "must be a number"),
        ("[sampling]\ntemperature = nan\n", "temperature must be"),
        ("[sampling]\nignore_eos = 1\n", "must be true or false"),
        ("[sampling]\nstop = [1]\n", "a string or a list of strings"),
        ("[engine]\nmodel = 3\n", "must be a string"),
        ("[engine]\nprecision = 'int2'\n", "precision must be one of"),
        ("[engine]\nmodel = \n", "not valid TOML"),
        ("[generate]\nconfig = 'x'\n", "no key 'config'"),
    ],
)
def test_wrong_files_are_one_sentence(command_line: CommandLine, settings: Path, content: str, part: str) -> None:
    settings.write_text(content)
    done = command_line("generate", "-p", "x")
    assert done.status == 1
    assert part in done.err
    assert done.err.startswith("hasten: ")
    assert done.err.count("\n") == 1
    assert command_line.llm.made == []


def test_files_that_cannot_be_read(command_line: CommandLine, settings: Path) -> None:
    done = command_line("generate", "-p", "x", "--config", str(settings))
    assert done.status == 1
    assert "cannot be read: No such file" in done.err
    settings.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in command_line("generate", "-p", "x").err
    assert command_line("generate", "--help").status == 0


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("HASTEN_MODLE", "did you mean 'HASTEN_MODEL'?"),
        ("HASTEN_MAXTOKENS", "did you mean 'HASTEN_MAX_TOKENS'?"),
        ("HASTEN_TEMP", "did you mean 'HASTEN_TEMPERATURE'?"),
        ("HASTEN_SED", "did you mean 'HASTEN_SEED'?"),
        ("HASTEN_HOSTS", "did you mean 'HASTEN_HOST'?"),
        ("HASTEN_API_KEY", "did you mean 'HASTEN_API_KEY_FILE'?"),
        ("HASTEN_KEY_FILE", "did you mean 'HASTEN_API_KEY_FILE'?"),
        ("HASTEN_APIKEYFILE", "did you mean 'HASTEN_API_KEY_FILE'?"),
    ],
)
def test_variables_that_are_nearly_one_of_ours_are_refused(command_line: CommandLine, name: str, part: str) -> None:
    """A setting that is not read may be one that keeps others out."""
    done = command_line("generate", "-p", "x", **{"HASTEN_QQQQQ": "1", name: "1"})
    assert done.status == 1
    assert f"'{name}'" in done.err
    assert part in done.err
    assert command_line.llm.made == []


@pytest.mark.parametrize("names", [["HASTEN_QQQQQ"], ["HASTEN_VERSION", "HASTEN_TOKEN", "HASTEN_NAME", "HASTEN_LOG_LEVEL"]])
def test_other_variables_stop_nothing(command_line: CommandLine, caplog: pytest.LogCaptureFixture, names: list[str]) -> None:
    done = command_line("generate", "-p", "x", **dict.fromkeys(names, "1"))
    assert done.status == 0, done.err
    (sentence,) = caplog.messages
    assert sentence.startswith("No setting is read from the environment variable")
    assert all(f"'{name}'" in sentence for name in names)


KUBERNETES = {
    "HASTEN_SERVICE_HOST": "10.0.0.1",
    "HASTEN_SERVICE_PORT": "8000",
    "HASTEN_SERVICE_PORT_HTTP_METRICS": "8000",
    "HASTEN_PORT": "tcp://10.0.0.1:8000",
    "HASTEN_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "HASTEN_PORT_8000_TCP_PROTO": "tcp",
    "HASTEN_PORT_8000_TCP_PORT": "8000",
    "HASTEN_PORT_8000_TCP_ADDR": "10.0.0.1",
    "HASTEN_PORT_53_UDP": "udp://10.0.0.1:53",
    "HASTEN_API_SERVICE_HOST": "10.0.0.2",  # of a service hasten-api
    "HASTEN_API_PORT": "tcp://10.0.0.2:80",
}


def test_what_kubernetes_sets_beside_a_service_of_our_name_is_passed_over(
    command_line: CommandLine, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    assert command_line("generate", "-p", "x", **KUBERNETES).status == 0
    assert caplog.messages == []
    for words in (("ls",), ("draft", "forget"), ("serve", "--new-key", "t", "--api-key-file", str(tmp_path / "keys"))):
        done = command_line(*words, **KUBERNETES, HASTEN_HOME=str(tmp_path))
        assert done.status == 0, done.err
    assert "'80x' is not a whole number" in command_line("serve", **KUBERNETES | {"HASTEN_PORT": "80x"}).err
    assert not any(of_kubernetes(variable(option), "8000") for _, command in verbs() for option in options_of(command))


def test_variables_of_other_verbs_and_of_the_project_are_known(command_line: CommandLine) -> None:
    for name in (*VARIABLES, "HASTEN_PROVENANCE", "HASTEN_TEMPERATURE"):
        value = {"HASTEN_CONFIG": "", "HASTEN_TEMPERATURE": "0.5", "HASTEN_HOME": "/nonexistent"}.get(name, "1")
        done = command_line("generate", "-p", "x", **{name: value})
        assert done.status == 0, (name, done.err)


def test_a_bad_value_in_a_variable_names_it(command_line: CommandLine) -> None:
    done = command_line("generate", "-p", "x", HASTEN_MAX_TOKENS="many")
    assert done.status == 2
    assert "HASTEN_MAX_TOKENS" in done.err


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_speculation_is_passed_on(command_line: CommandLine, verb: str) -> None:
    given = ("-p", "x") if verb == "generate" else ()
    done = command_line(verb, *given, "--speculation", "off", "--draft-nodes", "3", stdin="hello\n")
    assert done.status == 0, done.err
    assert command_line.made.speculation == SpeculationParams("off", 3)
    refused = command_line(verb, *given, "--speculation", "sometimes", stdin="hello\n")
    assert refused.status != 0
    assert "auto, off, on" in refused.err
