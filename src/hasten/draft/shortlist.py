"""What a trimmed draft model may propose for each text: the fixed ids, and those that this very text has made likely.

A fixed choice of ids misses names, rare words and other languages, and a text that says such a thing once says it again. So the
tokens of the prompt and the output, and what the target thought likely at any verified row, join the choice for that text
(in-context vocabulary, NanoSpec 2605.26444). On the Qwen2.5-Coder pair this wins back five sixths of the guesses that
a choice of 32,768 fixed ids costs. No text sees the ids of another.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hasten.model.head import IntArray, TrimmedHead

MOST_OWN = 1024  # ids that one text may add; beyond them the longest unseen go first
MOST_STALE = 256  # ids in the head that no text needs any more: a head that only grows costs a copy of what is new


@dataclass(slots=True)
class Own:
    """Of one text: its ids, the longest unseen first; those of them that came since the head was last used; and where those that
    were there stand in the head, ``array("q")``, None where that is to be found anew."""

    ids: dict[int, None] = field(default_factory=dict)
    fresh: list[int] = field(default_factory=list)
    places: array[int] | None = None
    picked: tuple[Tensor, IntArray] | None = None  # the same places, and the ids of all that the text may look at


class Shortlists:
    """Keeps the head's changing part equal to what the running texts need. ``vocabulary`` is the number of ids there are."""

    likeliest_wanted = 8

    def __init__(self, head: TrimmedHead, vocabulary: int) -> None:
        self._head = head
        self._foreign = np.ones(vocabulary, np.bool_)
        self._foreign[head.fixed[head.fixed < vocabulary]] = False
        self._own: dict[int, Own] = {}
        self._held = np.empty(0, np.int64)
        self._places: dict[int, int] = {}  # of these, in the head

    @property
    def ids(self) -> IntArray:
        """Of the head's columns."""
        return self._head.ids

    @property
    def fixed(self) -> int:
        """How many of the head's columns, the first ones, every text may look at."""
        return len(self._head.fixed)

    def begin(self, text: int) -> None:
        self._own[text] = Own()

    def end(self, text: int) -> None:
        """Its ids leave the head when it changes next."""
        self._own.pop(text, None)

    def note(self, text: int, tokens: Iterable[int]) -> None:
        """These tokens are likely in the text from now on."""
        known = np.array([*tokens], np.int64)
        known = known[(known >= 0) & (known < len(self._foreign))]
        own = self._own[text]
        for token in known[self._foreign[known]].tolist():
            if token in own.ids:
                del own.ids[token]
            else:
                own.fresh.append(token)
            own.ids[token] = None
        while len(own.ids) > MOST_OWN:
            del own.ids[next(iter(own.ids))]
            own.places = None

    def prepare(self) -> None:
        """Before the head is used: give it every id that some text needs."""
        changed = [own for own in self._own.values() if own.fresh or own.places is None]
        new = sorted({token for own in changed for token in own.fresh if token in own.ids} - self._places.keys())
        if new and len(self._places) + len(new) > sum(len(own.ids) for own in self._own.values()) + MOST_STALE:
            new = sorted(set().union(*(own.ids for own in self._own.values())))
            self._held = self._held[:0]
            self._places.clear()
            changed = [*self._own.values()]
            for own in changed:
                own.places = None
        if new:
            first = self.fixed + len(self._held)
            self._places.update((token, first + at) for at, token in enumerate(new))
            self._held = np.concatenate([self._held, np.array(new, np.int64)])
            self._head.hold(self._held)
        for own in changed:
            if own.places is None:
                own.places = array("q", (self._places[token] for token in own.ids))
            else:
                own.places.extend(self._places[token] for token in own.fresh)
            own.fresh.clear()
            own.picked = None

    def places(self, text: int) -> array[int]:
        """Which of the head's columns behind the fixed ones the text may look at."""
        places = self._own[text].places
        assert places is not None, "the head was prepared"
        return places

    def pick(self, text: int, row: Tensor) -> tuple[Tensor, IntArray]:
        """Of a row of the head's logits those that this text may look at, and their ids."""
        own = self._own[text]
        if len(own.ids) == len(self._places):
            return row, self._head.ids
        if own.picked is None:
            places = np.array(self.places(text))
            ids = np.concatenate([self._head.fixed, self._head.ids[places]])
            own.picked = torch.from_numpy(places).to(row.device), ids
        columns, ids = own.picked
        return torch.cat([row[: self.fixed], row[columns]]), ids
