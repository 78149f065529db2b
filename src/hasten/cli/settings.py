"""Where an option's value comes from: the command line, else ``HASTEN_<OPTION>``, else a TOML file, else its default.

The file has a table for each dataclass of settings, which serves all verbs, and one a verb, which wins over those::

    [engine]                     # fields of EngineConfig
    model = "qwen2.5-coder-1.5b"
    [sampling]                   # fields of SamplingParams that are options
    temperature = 0.7
    [chat]                       # any option of `hasten chat`
    provenance = true
    [draft.trim]                 # any option of `hasten draft trim`
    sizes = "16384"

A key is the option's long name with '_' for '-'. Unknown tables and keys, HASTEN_* variables that are nearly one of ours, and
values of another type than the option's, are errors before anything runs; of other HASTEN_* variables a line is said. Click holds
the precedence; this module only fills ``default_map``.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar

import click

from hasten.cli.options import ENGINE_HELP, SAMPLING_HELP
from hasten.cli.show_errors import Shell
from hasten.core.errors import ConfigError
from hasten.core.registry import closest, nearest

PREFIX = "HASTEN_"
VARIABLES = {
    "HASTEN_CONFIG": "the settings file, as --config",
    "HASTEN_DEBUG": "1: print the trace of an error, as --debug",
    "HASTEN_HOME": "the folder of models and measurements",
    "HASTEN_NATIVE": "off: leave the C++ kernels out",
    "HASTEN_NATIVE_ISA": "hold the C++ kernels to an instruction set",
    "HASTEN_NATIVE_LIBRARY": "the C++ kernels' library to load, instead of the one that was built here",
    "HASTEN_SHARED_DATA": "the folder of evaluation prompts and text that tests and benchmarks read",
    "HASTEN_TEST_FETCH": "1: tests may fetch the models that they need",
}
SHARED_TABLES: Mapping[str, Mapping[str, str]] = {"engine": ENGINE_HELP, "sampling": SAMPLING_HELP}
COMMON = ("config", "debug", "help", "version")
LIKELY = 0.75  # share of equal letters of a misspelt name; below it are strangers too, as VERSION is to VERIFY (0.62)
# What Kubernetes gives every container beside a Service that is called hasten, or hasten-NAME.
SERVICE = re.compile(r"HASTEN_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
SERVICE_PORT, SERVICE_ADDRESS = re.compile(r"HASTEN_(\w+_)?PORT"), re.compile(r"(tcp|udp|sctp)://")
log = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)


def common_options(command: Command) -> Command:
    """Give a command ``--config`` and ``--debug``."""
    early: dict[str, Any] = {"is_eager": True, "expose_value": False}
    command = click.option("--config", metavar="FILE", callback=_config, help="Settings, as TOML.", **early)(command)
    return click.option("--debug", is_flag=True, default=False, callback=_debug, help="Print traces of errors.", **early)(command)


def with_settings(verb: click.Command) -> click.Command:
    """Give a verb the common options and each of its options its environment variable. Doing it twice changes nothing."""
    if not any(option.name == "config" for option in _options(verb, common=True)):
        common_options(verb)
    for option in _options(verb):
        name = variable(option)
        option.envvar = None if of_kubernetes(name, os.environ.get(name, "")) else name
    return verb


def key(option: click.Option) -> str:
    """The option's name in a settings file: its first long name, with '_' for '-'."""
    longs = [name for name in option.opts if name.startswith("--")] or option.opts
    return longs[0].lstrip("-").replace("-", "_")


def variable(option: click.Option) -> str:
    """The option's environment variable."""
    return PREFIX + key(option).upper()


def default_path(environment: Mapping[str, str]) -> Path:
    """The settings file that is read when none is named."""
    home = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "hasten" / "config.toml"


def of_kubernetes(name: str, value: str) -> bool:
    """Whether a HASTEN_* variable is one that Kubernetes makes for a Service, which is no setting: not HASTEN_PORT=8000, but
    HASTEN_PORT=tcp://10.0.0.1:8000."""
    return bool(SERVICE.fullmatch(name) or (SERVICE_PORT.fullmatch(name) and SERVICE_ADDRESS.match(value)))


def check_environment(environment: Mapping[str, str], verb: click.Command, others: Callable[[], list[click.Command]]) -> None:
    """Raise ConfigError for a HASTEN_* variable that no verb reads and that is nearly one of those; warn of the others, which may
    be somebody else's. ``others`` is called only when ``verb`` lacks one."""
    names = [name for name, value in environment.items() if name.startswith(PREFIX) and not of_kubernetes(name, value)]
    known = {*VARIABLES, *(PREFIX + name.upper() for table in SHARED_TABLES.values() for name in table)}
    known |= {variable(option) for option in _options(verb)}
    if all(name in known for name in names):
        return
    known |= {variable(option) for other in others() for option in _options(other)}
    strange = [name for name in names if name not in known]
    for name in strange:
        meant = _meant(name, known)
        if meant is not None:
            raise ConfigError(f"No setting is read from the environment variable '{name}'; did you mean '{meant}'?")
    if strange:
        which, them = ("variable", "it") if len(strange) == 1 else ("variables", "them")
        quoted = ", ".join(map(repr, strange))
        sentence = "No setting is read from the environment %s %s; unset %s, or look for the option in --help."
        log.warning(sentence, which, quoted, them)


def _meant(name: str, known: set[str]) -> str | None:
    """The variable that ``name`` is a misspelling or a beginning of, if any."""
    # Compared without the prefix they share, which would make any two names look alike.
    word = name.removeprefix(PREFIX)
    close = closest(word, sorted(other.removeprefix(PREFIX) for other in known))
    if close is None or not (close.startswith(word) or SequenceMatcher(None, word, close).ratio() >= LIKELY):
        return None
    return PREFIX + close


def file_values(path: Path, verb: click.Command, ctx: click.Context) -> dict[str, Any]:
    """The values that the file has for ``verb``, by click's parameter name. The whole file is checked.

    Raises ConfigError, one sentence, for a file that cannot be read and for unknown or ill-typed entries.
    """
    own: dict[str, tuple[str, Any]] = {}  # the table that holds it, and the value
    shared: dict[str, tuple[str, Any]] = {}
    for table, entries, command in _tables(path, _read(path), ctx.find_root().command, ctx):
        held = {name: (table, value) for name, value in entries.items()}
        if command is None:
            _check_keys(path, table, entries, list(SHARED_TABLES[table]))
            shared |= held
            continue
        named = {key(option): option for option in _options(command)}
        _check_keys(path, table, entries, list(named))
        for name, value in entries.items():
            _check_type(path, table, named[name], value)
        own |= held if command is verb else {}
    chosen, out = shared | own, {}
    for option in _options(verb):
        if key(option) in chosen:
            table, value = chosen[key(option)]
            _check_type(path, table, option, value)
            out[str(option.name)] = [value] if option.multiple and isinstance(value, str) else value
    return out


def _tables(
    path: Path, content: Mapping[str, Any], group: click.Command, ctx: click.Context, above: str = ""
) -> Iterator[tuple[str, dict[str, Any], click.Command | None]]:
    """Name, entries and verb of every table, None where all verbs share it; that of a verb in a group is [GROUP.VERB]."""
    verbs = group.list_commands(ctx) if isinstance(group, click.Group) else []
    known = [f"{above}{name}" for name in verbs] + ([] if above else list(SHARED_TABLES))
    for name, entries in content.items():
        table = f"{above}{name}"
        if table not in known:
            inner = next((other for other in all_verbs(ctx) if other.endswith(f".{name}")), None)
            hint = nearest(table, known) if inner is None else f"; did you mean '{inner}'?"
            raise ConfigError(f"{path}: there is no table called '{table}'{hint}")
        if not isinstance(entries, dict):
            raise ConfigError(f"{path}: '{table}' must be a table, written [{table}].")
        command = group.get_command(ctx, name) if isinstance(group, click.Group) and name in verbs else None
        if isinstance(command, click.Group):
            yield from _tables(path, entries, command, ctx, f"{table}.")
        else:
            yield table, entries, command


def all_verbs(ctx: click.Context) -> dict[str, click.Command]:
    """Every verb by the name of its table, those of groups too. Imports all of them."""

    def verbs(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield name, command
            return
        for inner in command.list_commands(ctx):
            found = command.get_command(ctx, inner)
            if found is not None:
                yield from verbs(found, f"{name}.{inner}" if name else inner)

    return dict(verbs(ctx.find_root().command, ""))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{path} is not valid TOML: {problem}.") from problem
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path} is not UTF-8 text, which TOML must be.") from problem
    except OSError as problem:
        raise ConfigError(f"The settings file {path} cannot be read: {problem.strerror}.") from problem


def _check_keys(path: Path, table: str, entries: Mapping[str, Any], known: list[str]) -> None:
    for name in entries:
        if name not in known:
            raise ConfigError(f"{path}: [{table}] has no key '{name}'{nearest(name, known)}")


def _check_type(path: Path, table: str, option: click.Option, value: object) -> None:
    """Click would turn 1.5 into 1 and true into 1.0; a settings file says what it means."""
    texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if option.multiple:
        ok, wanted = isinstance(value, str) or texts, "a string or a list of strings"
    elif option.is_flag:
        ok, wanted = isinstance(value, bool), "true or false"
    elif isinstance(option.type, click.types.IntParamType):  # a range of them too
        ok, wanted = number and not isinstance(value, float), "a whole number"
    elif isinstance(option.type, click.types.FloatParamType):
        ok, wanted = number, "a number"
    else:
        ok, wanted = isinstance(value, str), "a string"
    if not ok:
        raise ConfigError(f"{path}: {key(option)} in [{table}] must be {wanted}, not {value!r}.")


def _options(command: click.Command, common: bool = False) -> list[click.Option]:
    return [
        parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and (common or parameter.name not in COMMON)
    ]


def _debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Shell).debug = True


def _config(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Check the environment and the file before any other option of the verb is read."""
    shell = ctx.ensure_object(Shell)
    if isinstance(ctx.command, click.Group):
        shell.config = value or shell.config
        return
    check_environment(os.environ, ctx.command, lambda: list(all_verbs(ctx).values()))
    named = value or shell.config or os.environ.get("HASTEN_CONFIG")
    path = Path(named).expanduser() if named else default_path(os.environ)
    if named or path.is_file():
        ctx.default_map = file_values(path, ctx.command, ctx)
