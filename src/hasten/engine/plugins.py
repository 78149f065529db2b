"""Drafters by name, those of other packages too, of which nothing can be taken for granted."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

from hasten.core.errors import ConfigError, HastenError
from hasten.core.registry import brief
from hasten.core.types import MODEL_SOURCE
from hasten.draft import DRAFTERS
from hasten.draft.base import Drafter


def made(name: str, arguments: dict[str, Any]) -> Drafter:
    """The drafter registered as ``name``, made with these arguments.

    Raises ConfigError where it cannot be made, or is not what ``draft.base`` asks for. What constructors of our own raise goes
    through.
    """
    factory, package = DRAFTERS.resolve(name), DRAFTERS.package(name)
    whose = f"The drafter '{name}'" + (f" of the package {package}" if package else "")
    if missing := _missing(factory, arguments):
        example = ", ".join(f"{argument}=..." for argument in missing)
        raise ConfigError(f"{whose} cannot be made without {', '.join(missing)}; write '{name}({example})'.")
    try:
        drafter = factory(**arguments)
    except HastenError:
        raise
    except Exception as problem:
        if package is None:
            raise
        raise ConfigError(f"{whose} cannot be made ({brief(problem)}); repair that package, or leave the drafter out.") from problem
    if what := _wrong(drafter, name):
        raise ConfigError(f"{whose} {what}.")
    assert isinstance(drafter, Drafter)
    return drafter


def _missing(factory: Any, arguments: dict[str, Any]) -> list[str]:
    """Arguments that have to be given and are not."""
    try:
        parameters = signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have none
        return []
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    needed = [each.name for each in parameters if each.kind in by_name and each.default is Parameter.empty]
    return [argument for argument in needed if argument not in arguments]


def _wrong(drafter: object, name: str) -> str:
    """What keeps an object from being the drafter of that name, and the remedy; "" where nothing does."""
    if not isinstance(drafter, Drafter):
        return f"makes a {type(drafter).__name__}, which is no drafter; derive it from hasten.draft.base.Drafter"
    if drafter.name != name:
        return f"calls itself {drafter.name!r}; its class has to say name = {name!r}"
    if name == MODEL_SOURCE:
        return f"cannot be called {name!r}: answers name the model so, where they say who guessed a token"
    if drafter.draws and type(drafter).draw is Drafter.draw:
        return "says that it draws and has no method draw; write one, or leave draws out"
    return ""
