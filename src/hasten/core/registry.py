"""Names that stand for implementations: a table of "module:attribute" rows, resolved only when chosen, and open to other
packages through entry points. A *spec* is how a user writes one: ``suffix``, ``suffix(max_depth=12)``, ``suffix+lm(tree=rsd-s)``.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from hasten.core.errors import ConfigError, HastenError


@dataclass(frozen=True, slots=True)
class Spec:
    """One implementation asked for: its registered name and keyword arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """As ``parse_specs`` reads it."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({given})" if given else self.name


@dataclass(frozen=True)
class Registry:
    """``rows`` maps a name to "module:attribute". ``group`` is the entry-point group that may add names."""

    kind: str
    group: str
    rows: Mapping[str, str]

    def names(self) -> list[str]:
        """Every known name, sorted; imports nothing."""
        return sorted({*self.rows, *(point.name for point in entry_points(group=self.group))})

    def package(self, name: str) -> str | None:
        """The other package that has added ``name``, or, where it has no name, where it says the object lies; None for our own."""
        for point in () if name in self.rows else entry_points(group=self.group, name=name):
            return point.value if point.dist is None else point.dist.name
        return None

    def resolve(self, name: str) -> Any:
        """The object registered as ``name``, which can be called. Raises ConfigError with the nearest name when there is none, and
        where another package has registered what cannot be imported."""
        target = self.rows.get(name)
        if target is not None:
            module, _, attribute = target.partition(":")
            return getattr(importlib.import_module(module), attribute)
        for point in entry_points(group=self.group, name=name):
            try:
                found = point.load()
            except HastenError:
                raise
            except Exception as problem:  # whatever the module does when it is imported
                raise self._broken(name, f"cannot be imported as {point.value} ({brief(problem)})") from problem
            if not callable(found):
                raise self._broken(name, f"is no class, nor anything else that makes one: {point.value} cannot be called")
            return found
        raise ConfigError(f"There is no {self.kind} called '{name}'{nearest(name, self.names())}")

    def _broken(self, name: str, what: str) -> ConfigError:
        return ConfigError(
            f"The {self.kind} '{name}' of the package {self.package(name)} {what}; repair that package, or uninstall it."
        )


def brief(problem: Exception) -> str:
    """An exception's type and words, in one line."""
    return " ".join(f"{type(problem).__name__}: {problem}".split()).rstrip(" .:")


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: the shortest that begins with ``name``, else one that is much like it, else None."""
    known = list(known)
    longer = [other for other in known if len(name) > 2 and other.startswith(name)]
    close = sorted(longer, key=len) or difflib.get_close_matches(name, known, n=1)
    return close[0] if close else None


def nearest(name: str, known: list[str]) -> str:
    """The end of an error sentence: the closest known name, or the list of all."""
    close = closest(name, known)
    return f"; did you mean '{close}'?" if close else f"; known are: {', '.join(sorted(known))}."


def parse_specs(text: str) -> list[Spec]:
    """Read ``name``, ``name(key=value, ...)`` or several joined by '+'. A value is a literal or a plain word (``tree=rsd-s``):
    nothing is executed.

    Raises ConfigError when the text is not of that form.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return [_spec(part) for part in _terms(tree)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise ConfigError(f"'{text}' is not a drafter spec; write name, name(key=value) or several joined by '+'.") from problem


def _terms(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_terms(node.left), node.right]
    return [node]


def _spec(node: ast.expr) -> Spec:
    if isinstance(node, ast.Name):
        return Spec(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        arguments: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ValueError("no ** in a spec")
            arguments[keyword.arg] = _value(keyword.value)
        return Spec(node.func.id, arguments)
    raise ValueError("neither a name nor a call")


def _value(node: ast.expr) -> Any:
    word = ast.unparse(node).replace(" - ", "-")
    return word if re.fullmatch("[a-z_][a-z0-9_]*(-[a-z0-9_]+)*", word) else ast.literal_eval(node)
