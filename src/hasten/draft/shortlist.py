"""What a trimmed draft model may propose for each text: the fixed ids, and those that this very text has made likely.

A fixed choice of ids misses names, rare words and other languages, and a text that says such a thing once says it again. So the
tokens of the prompt and the output, and what the target thought likely at any verified row, join the choice for that text
(in-context vocabulary, NanoSpec 2605.26444). On the Qwen2.5-Coder pair this wins back five sixths of the guesses that
a choice of 32,768 fixed ids costs. No text sees the ids of another.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from hasten.model.head import IntArray, TrimmedHead

MOST_OWN = 1024  # ids that one text may add; beyond them the longest unseen go first
MOST_STALE = 256  # ids in the head that no text needs any more: a head that only grows costs a copy of what is new


class Shortlists:
    """Keeps the head's changing part equal to what the running texts need. ``vocabulary`` is the number of ids there are."""

    likeliest_wanted = 8

    def __init__(self, head: TrimmedHead, vocabulary: int) -> None:
        self._head = head
        self._foreign = np.ones(vocabulary, np.bool_)
        self._foreign[head.fixed[head.fixed < vocabulary]] = False
        self._own: dict[int, dict[int, None]] = {}
        self._held = np.empty(0, np.int64)
        self._places: dict[int, int] = {}  # of these, in the head
        self._fresh: set[int] = set()  # to be held from the next time on
        self._columns: dict[int, tuple[Tensor, IntArray]] = {}  # of those that a text adds: their places, and all its ids

    def begin(self, text: int) -> None:
        self._own[text] = {}

    def end(self, text: int) -> None:
        """Its ids leave the head when it changes next."""
        self._own.pop(text, None)
        self._columns.pop(text, None)

    def note(self, text: int, tokens: Iterable[int]) -> None:
        """These tokens are likely in the text from now on."""
        array = np.array([*tokens], np.int64)
        array = array[(array >= 0) & (array < len(self._foreign))]
        fresh = array[self._foreign[array]].tolist()
        own = self._own[text]
        for token in fresh:
            if token not in own:
                self._columns.pop(text, None)
            own.pop(token, None)
            own[token] = None
            if token not in self._places:
                self._fresh.add(token)
        while len(own) > MOST_OWN:
            del own[next(iter(own))]

    def prepare(self) -> None:
        """Before the head is used: give it every id that some text needs."""
        new = sorted(token for token in self._fresh if any(token in own for own in self._own.values()))
        self._fresh.clear()
        if not new:
            return
        if len(self._places) + len(new) > sum(map(len, self._own.values())) + MOST_STALE:
            new = sorted(set().union(*self._own.values()))
            self._held = self._held[:0]
            self._places.clear()
            self._columns.clear()
        first = len(self._head.fixed) + len(self._held)
        self._places.update((token, first + at) for at, token in enumerate(new))
        self._held = np.concatenate([self._held, np.array(new, np.int64)])
        self._head.hold(self._held)

    def pick(self, text: int, row: Tensor) -> tuple[Tensor, IntArray]:
        """Of a row of the head's logits those that this text may look at, and their ids."""
        own = self._own[text]
        if len(own) == len(self._places):
            return row, self._head.ids
        fixed = len(self._head.fixed)
        if text not in self._columns:
            places = np.array([self._places[token] for token in own], np.int64)
            self._columns[text] = (
                torch.from_numpy(places).to(row.device),
                np.concatenate([self._head.fixed, self._head.ids[places]]),
            )
        places_of_text, ids = self._columns[text]
        return torch.cat([row[:fixed], row[places_of_text]]), ids
