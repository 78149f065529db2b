"""What a limit on an answer's form has to do: say, at every node of a tree, which tokens may come next. No torch at run time.

``verify_tree`` asks along the path that it walks, so the tokens of an answer with drafts are those without: a mask depends on
the committed tokens and the path alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Constraint(Protocol):
    """The state of one answer. Belongs to the engine's thread."""

    def allowed_after(self, path: Sequence[int]) -> Tensor | None:
        """bool, one entry a token: what may follow the accepted tokens and then ``path``; None: anything."""

    def accept(self, tokens: Sequence[int]) -> None:
        """These tokens are committed. Raises HastenError when they are not allowed."""
