"""How errors reach the user: one sentence on standard error and an exit status. A trace only when asked for."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from hasten.core.errors import ConfigError, HastenError
from hasten.core.registry import closest

FAILED, MISUSED = 1, 2
INTERRUPTED = 128 + int(signal.SIGINT)
NO_NUMBER = re.compile(r"is not (a valid (integer|float)( range)?|in the range \S+)\.$")  # click's words for it


class Misuse(ConfigError):
    """A wrong value on the command line, or options there that do not go together: status 2, as for what click itself refuses."""


@dataclass(slots=True)
class Shell:
    """What holds for the whole command line: whether traces are wanted, and the settings file named before the verb."""

    debug: bool = False
    config: str | None = None


def shown(command: Callable[[], object], shell: Shell) -> int:
    """Run ``command`` and return the exit status (an int it returns, else 0); whatever it raises is told in one sentence."""
    try:
        result = command()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return _tell("stopped.", INTERRUPTED, shell, trace=False)
    except click.ClickException as problem:
        return _tell(_usage_sentence(problem), FAILED if _from_file(problem) else problem.exit_code, shell)
    except Misuse as problem:
        return _tell(str(problem), MISUSED, shell)
    except HastenError as problem:
        return _tell(str(problem), FAILED, shell)
    except BrokenPipeError:
        _close_stdout()
        return FAILED  # what click itself exits with when the pipe breaks inside a verb
    except MemoryError:
        return _tell("this machine has not enough free memory; try a smaller --cache-tokens or a smaller model.", FAILED, shell)
    except OSError as problem:
        place = f" ({problem.filename})" if problem.filename else ""
        _close_stdout_if_full()
        return _tell(f"the system refused: {problem.strerror or problem}{place}.", FAILED, shell)
    except Exception as problem:
        return _tell(_bug_sentence(problem, shell), FAILED, shell)


def _usage_sentence(problem: click.ClickException) -> str:
    """Click's message, with where to read more when the mistake is one of usage."""
    sentence = " ".join(_message(problem).split())
    sentence = sentence if sentence.endswith((".", "?", "!", ")")) else f"{sentence}."
    if isinstance(problem, click.BadParameter) and problem.param is not None and _source(problem) is ParameterSource.ENVIRONMENT:
        sentence += f" It came from the environment variable {problem.param.envvar}."
    if isinstance(problem, click.UsageError) and problem.ctx is not None:
        return f"{sentence} See '{problem.ctx.command_path} --help'."
    return sentence


def _message(problem: click.ClickException) -> str:
    """Click's own words, but for a number, where it speaks of integer ranges, and an unknown option, where it offers whatever is a
    little like it."""
    if isinstance(problem, click.BadParameter) and problem.param is not None:
        return NO_NUMBER.sub(f"is not {_wanted(problem.param.type)}.", problem.format_message())
    if not isinstance(problem, click.NoSuchOption) or problem.ctx is None:
        return problem.format_message()
    known = [name for option in problem.ctx.command.get_params(problem.ctx) for name in option.opts if name.startswith("--")]
    close = closest(problem.option_name, known)
    return f"No such option '{problem.option_name}'" + (f"; did you mean '{close}'?" if close else ".")


def _wanted(kind: click.ParamType[Any]) -> str:
    """What a number has to be, in words."""
    noun = "a whole number" if isinstance(kind, click.types.IntParamType) else "a number"
    low, high = (kind.min, kind.max) if isinstance(kind, click.IntRange | click.FloatRange) else (None, None)
    if low is None or high is None:
        return noun + (f" of at least {low}" if low is not None else f" of at most {high}" if high is not None else "")
    return f"{noun} from {low} to {high}"


def _source(problem: click.BadParameter) -> ParameterSource | None:
    name = problem.param.name if problem.param is not None else None
    return problem.ctx.get_parameter_source(name) if problem.ctx is not None and name is not None else None


def _from_file(problem: click.ClickException) -> bool:
    return isinstance(problem, click.BadParameter) and _source(problem) is ParameterSource.DEFAULT_MAP


def _bug_sentence(problem: Exception, shell: Shell) -> str:
    what = f"{type(problem).__name__}: {problem}".splitlines()[0].rstrip(" .:")
    how = "with the trace above" if shell.debug else "with the trace that HASTEN_DEBUG=1 prints"
    return f"something broke inside Hasten ({what}); that is our mistake, please report it {how}."


def _tell(sentence: str, status: int, shell: Shell, trace: bool = True) -> int:
    try:
        if trace and shell.debug:
            traceback.print_exc()
        print(f"hasten: {_one_line(sentence)}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        pass
    return status


def _one_line(text: str) -> str:
    """Names and file contents that an error quotes must neither break the line nor steer the terminal."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _close_stdout_if_full() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _close_stdout()


def _close_stdout() -> None:
    """Nobody reads our output any more: what is still buffered goes nowhere, so that the interpreter's last flush is silent."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
