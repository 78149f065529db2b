"""Who guessed each token, in one letter."""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_letters, digits

from hasten.core.types import MODEL_SOURCE


class Legend:
    """A letter for each drafter: the first letter of its name that is free, else any. "m" is the model itself."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._codes: dict[str, str] = {}
        for name in (MODEL_SOURCE, *names):
            self.code(name)

    def code(self, name: str) -> str:
        """The drafter's letter; a name that is new gets one."""
        found = self._codes.get(name)
        if found is None:
            taken = set(self._codes.values())
            letters = [
                letter for letter in (*name, *ascii_letters, *digits) if letter in ascii_letters + digits and letter not in taken
            ]
            found = self._codes[name] = letters[0] if letters else "?"
        return found

    def codes(self, names: Iterable[str]) -> str:
        """One letter a token."""
        return "".join(map(self.code, names))

    def names(self) -> dict[str, str]:
        """Letter to name."""
        return {code: name for name, code in self._codes.items()}
