"""Token Recycling (arXiv:2408.08696, section 3): what the target found likely after a token when it last saw that token.

Every verified row, of rejected nodes too, leaves the target's few likeliest successors. The paper keeps them by the row's token, the
last write wins. Here they are also kept by the row's last two and three tokens: the longest known key gives a place its candidates,
and those of the single token stand behind. Rows of accepted nodes are written after those of rejected ones.

The paper copies one template of 80 nodes. Here the tree follows from measured acceptance: once the target has chosen, the choice
is looked up among the candidates that the rows had for its place, drafted or not, so that each rank of each kind of row knows
how often it is right, with forgetting. A kind is the length of the key, and whether the row's first choice is that of the
single token too. On these chances the tree grows best-first, as large as the budget (Sequoia, arXiv:2402.12374, section 3).

With SmolLM2-135M, greedy, over 28 chat prompts the first candidate was right: three tokens .67 (agreeing) and .38, two tokens .57
and .14, one token .26; the second .09 everywhere; of a seeded row .14.

Rows and acceptance are a tenant's own, outlive its requests, and never reach another tenant. Cost in CPython: some 5 us a verified
row, 100 to 200 us a tree. Memory: at most some 700 bytes a token of ``most_tokens`` and tenant.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

from hasten.core.errors import ConfigError
from hasten.core.types import ROOT, DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.best_first import best_first

WIDTH = 8  # successors a row
LONGEST_KEY = 3  # tokens
KINDS = tuple((length, agrees) for length in range(LONGEST_KEY + 1) for agrees in (False, True))  # length 0: behind, 1: alone
SEEDED = (-1, False)

_TAIL = (0.02, 0.02, 0.015, 0.015, 0.01)
_PRIOR: dict[Kind, tuple[float, ...]] = {
    (3, True): (0.62, 0.09, 0.04, *_TAIL),
    (3, False): (0.38, 0.08, 0.06, *_TAIL),
    (2, True): (0.48, 0.09, 0.04, *_TAIL),
    (2, False): (0.14, 0.08, 0.04, *_TAIL),
    (1, True): (0.22, 0.09, 0.045, *_TAIL),
    (0, False): (0.05, 0.03, 0.02, *_TAIL),
    (-1, False): (0.14, 0.03, 0.03, *_TAIL),
}
