"""Which replica has read the beginning of a prompt: what one tenant begins alike goes where the prefix cache knows it.

Guesses from the text of a request alone, without tokenizer: a wrong guess costs time, never an answer.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

STEP = 256  # characters from one beginning to the next: about the tokens of one block of the prefix cache
MOST_STEPS = 256  # of one request
MOST_BEGINNINGS = 1 << 16  # kept of all requests, the latest ones
SLACK = 4  # requests that a replica may have more than twice those of the idlest before its cache is not worth the wait

_HEAD = ("model", "tools", "system", "instructions")
_CONVERSATION = ("messages", "input", "prompt")


def trail_of(tenant: str, body: Mapping[str, Any]) -> list[bytes]:
    """The hashes of a request's beginnings, shortest first; none where it is too short. A conversation that goes on has
    the trail of what it was before as its own beginning; another tenant's never has."""
    text = _beginning(body, STEP * MOST_STEPS)
    trail: list[bytes] = []
    so_far = blake2b(tenant.encode(), digest_size=16).digest()
    for start in range(0, len(text) - STEP + 1, STEP):
        so_far = blake2b(so_far + text[start : start + STEP].encode("utf-8", "surrogatepass"), digest_size=16).digest()
        trail.append(so_far)
    return trail


def _beginning(body: Mapping[str, Any], most: int) -> str:
    """The first ``most`` characters of a request's words."""
    parts: list[str] = []
    size = 0
    for part in _texts(body):
        parts.append(part)
        size += len(part)
        if size >= most:  # bodies may be far longer, and what follows would be written for nothing
            break
    return "".join(parts)[:most]


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """The words of a request in the order in which a model reads them."""
    for name in _HEAD:
        yield json.dumps(body.get(name), sort_keys=True)
    for name in _CONVERSATION:
        said = body.get(name)
        if isinstance(said, str):
            yield said
        elif isinstance(said, list):
            yield from (item if isinstance(item, str) else json.dumps(item, sort_keys=True) + "\n" for item in said)


class Affinity:
    """Remembers which replicas have read which beginnings, and chooses one for a request."""

    def __init__(self, most: int = MOST_BEGINNINGS) -> None:
        self._most = most
        self._readers: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._turn = 0
        self._last_turn: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._readers)

    def choose(self, trail: Sequence[bytes], loads: Mapping[int, int]) -> int:
        """Of the replicas in ``loads`` (number to requests in work), the one that has read the longest beginning, unless it is
        clearly more loaded than the idlest: then that one, and among equals the one whose turn is longest ago. It is remembered."""
        chosen = self._reader(trail, loads)
        if chosen is None:
            chosen = min(loads, key=lambda replica: (loads[replica], self._last_turn.get(replica, 0)))
        self._turn += 1
        self._last_turn[chosen] = self._turn
        for beginning in trail:
            others = (replica for replica in self._readers.pop(beginning, ()) if replica != chosen)
            self._readers[beginning] = (chosen, *others)
        while len(self._readers) > self._most:
            self._readers.popitem(last=False)
        return chosen

    def forget(self, replica: int) -> None:
        """It has ended, and its cache with it."""
        for beginning, readers in list(self._readers.items()):
            left = tuple(reader for reader in readers if reader != replica)
            if left:
                self._readers[beginning] = left
            else:
                del self._readers[beginning]

    def _reader(self, trail: Sequence[bytes], loads: Mapping[int, int]) -> int | None:
        for beginning in reversed(trail):
            readers = [replica for replica in self._readers.get(beginning, ()) if replica in loads]
            if readers:
                best = min(readers, key=loads.__getitem__)
                return best if loads[best] <= 2 * min(loads.values()) + SLACK else None
        return None
