"""Hierarchy Drafting (arXiv:2502.05609): guess from three databases in the order of their temporal locality.

*Context*: this request's own prompt and output, as the suffix drafter sees them. *Model*: the model's own generations on other
prompts, its own questions among them. *Statistics*: any text. The last two are files that ``hasten draft build`` makes.

The paper concatenates the look-ups until seven guesses are there, so that one branch may be verified three times and rare tuples
come before frequent ones. Here all sources vote for each node together, the less the farther they are from the request; equal
guesses are one node, and the tree is cut by score. A slower database is not asked where the faster ones leave little doubt.

The scores are probabilities. Replayed on the greedy answers of a 135M model to 78 prompts (chat, translation, summaries, retrieval,
mathematics, code), with its answers to 78 others as the model database and 104,000 tokens of an encyclopedia as statistics, 16
nodes a round, for the nodes whose parent was accepted:

    score      .05  .14  .25  .35  .46  .55  .65  .76  .86  .95
    accepted   .04  .19  .31  .43  .53  .57  .76  .81  .85  .94

Tokens a round there, the model's own included: context alone 2.31, with the model database 2.73, with both 2.78.
Cost in CPython: 50 to 300 us a tree.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hasten.core.damaged import free_name, set_aside
from hasten.core.errors import ConfigError, CorruptModel, VocabularyMismatch
from hasten.core.types import DraftTree, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.best_first import best_first
from hasten.draft.matches import LONGEST_MATCH, Match, vote, weights
from hasten.draft.ngrams import MOST_PLACES, NgramDatabase
from hasten.draft.suffix import DOUBT, ESCAPE, GRAM_LENGTHS, MOST_MATCHES, SuffixMemory

log = logging.getLogger(__name__)
SURE = 0.9  # a guess of the faster sources this likely leaves nothing for a slower one to say

_CONTEXT = weights(trust=1.0, power=2.0, ranks=len(GRAM_LENGTHS) * MOST_MATCHES)
_MODEL = weights(trust=1 / 2, power=1.5, ranks=MOST_PLACES)
_STATISTICS = weights(trust=1 / 4, power=1.5, ranks=MOST_PLACES)


class HierarchyDrafter(Drafter):
    """``model`` and ``statistics`` are files of ``hasten draft build`` for ``vocabulary`` (the tokenizer's fingerprint); without
    them there is one source less. Raises ConfigError when a file is named that does not exist or was built for another
    vocabulary; a damaged one is set aside with a warning and left out."""

    name = "hierarchy"

    def __init__(self, model: Path | str | None = None, statistics: Path | str | None = None, vocabulary: str = "") -> None:
        self._memories: dict[int, SuffixMemory] = {}
        given = ((_opened(model, vocabulary), _MODEL), (_opened(statistics, vocabulary), _STATISTICS))
        self._databases = [(database, table) for database, table in given if database is not None]

    def begin(self, sequence: Sequence) -> None:
        """Index the prompt. Beginning again starts over."""
        self._memories[sequence.id] = SuffixMemory()
        self._memories[sequence.id].extend(sequence.tokens)

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        """Catch up with what was committed since, and grow a tree. Raises KeyError for a sequence that was not begun."""
        trees: list[DraftTree] = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            memory = self._memories[sequence.id]
            memory.extend(sequence.tokens[len(memory.tokens) :])
            start = self._matches(memory) if budget.nodes > 0 and budget.depth > 0 else []
            trees.append(best_first(start, lambda found: vote(found, ESCAPE, DOUBT), budget, self.name))
        return trees

    def end(self, sequence: Sequence) -> None:
        """Free the sequence's memory."""
        self._memories.pop(sequence.id, None)

    @property
    def bytes(self) -> int:
        return sum(memory.bytes for memory in [*self._memories.values()])

    def _matches(self, memory: SuffixMemory) -> list[Match]:
        """What the sources know of the text's end, nearest source first."""
        pairs = zip(memory.matches(), _CONTEXT, strict=False)
        found: list[Match] = [(memory.tokens, at, length, by_length) for (at, length), by_length in pairs]
        end = memory.tokens[-LONGEST_MATCH:]
        for database, table in self._databases:
            if any(score > SURE for _, score, _ in vote(found, ESCAPE, DOUBT)):
                break
            found += database.matches(end, table)
        return found


def _opened(path: Path | str | None, vocabulary: str) -> NgramDatabase | None:
    """The database at ``path``; None when none is named, or when it is damaged."""
    if path is None:
        return None
    path = Path(path)
    try:
        return NgramDatabase(path, vocabulary)
    except FileNotFoundError as problem:
        raise ConfigError(f"There is no draft database at {path}; `hasten draft build` makes one.") from problem
    except VocabularyMismatch as problem:
        raise ConfigError(str(problem)) from problem
    except CorruptModel as problem:
        set_aside(path, str(problem).removesuffix("."), free_name(path), " and left out")
    except OSError as problem:
        log.warning("The draft database %s cannot be used and is left out (%s).", path, problem)
    return None
