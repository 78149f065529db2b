"""One sequence's draft round, from the first bid to what became of it: the paper on which controller and engine meet. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from hasten.core.config import SpeculationParams
from hasten.core.types import DraftTree, SamplingParams, Sequence


@dataclass(slots=True)
class Round:
    """``origins[i]`` names who bid node i of ``tree`` first: free drafters are asked before paid ones, so that a paid one is
    credited only with what it alone brought. ``verified`` is the part that is checked, ``accepted`` its accepted nodes.
    ``seconds`` is what each drafter took for this sequence; ``catching_up`` the part of it that read text rather than guessed;
    ``unread`` the tokens that one has to read before it guesses, where that is not the whole context."""

    sequence: int
    kind: str
    context: int
    generated: int
    tokens_left: int
    wish: SpeculationParams
    tree: DraftTree = field(default_factory=DraftTree)
    origins: list[str] = field(default_factory=list)
    verified: DraftTree = field(default_factory=DraftTree)
    verified_origins: list[str] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    catching_up: dict[str, float] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, sequence: Sequence, wish: SpeculationParams, flat: bool = False) -> Round:
        return cls(
            sequence.id,
            kind_of(sequence.params, flat),
            len(sequence.tokens),
            sequence.output_length,
            sequence.tokens_left,
            wish,
        )

    @property
    def wished(self) -> tuple[bool, str]:
        """Whether the request lets drafters guess as long as nothing is known of them, and why."""
        if self.wish.mode == "off" or self.wish.nodes == 0:
            return False, "the request asks for no drafts"
        return True, "the request asks for drafts" if self.wish.mode == "on" else "nothing is measured yet"

    def to_read(self, drafter: str) -> int:
        return self.unread.get(drafter, self.context)

    def bid(self, drafter: str, tree: DraftTree) -> None:
        """Merge one drafter's tree."""
        self.tree.merge(tree)
        self.claim(drafter)

    def claim(self, drafter: str) -> None:
        """The nodes that joined the tree since the last claim are this drafter's."""
        self.origins += [drafter] * (len(self.tree) - len(self.origins))

    def keep(self, nodes: set[int]) -> DraftTree:
        """Choose what is verified."""
        self.verified = self.tree.keep(nodes)
        self.verified_origins = [self.origins[node] for node in sorted(nodes)]
        return self.verified

    def line_up(self) -> None:
        """Put what is verified in the order in which it will be computed: rows of a path that is accepted as a whole stand where
        they are to stay, and nothing of them has to be moved."""
        order = self.verified.paths_in_line()
        self.verified = self.verified.arranged(order)
        self.verified_origins = [self.verified_origins[node] for node in order]

    def settle(self) -> None:
        """What was chosen is the tree that others may still add to."""
        self.tree, self.origins = self.verified, self.verified_origins

    def brought(self) -> dict[str, int]:
        """Accepted nodes by who bid them first."""
        out: dict[str, int] = {}
        for node in self.accepted:
            out[self.verified_origins[node]] = out.get(self.verified_origins[node], 0) + 1
        return out

    def nets(self, unit: float, row_seconds: float) -> dict[str, float]:
        """What each drafter that was asked has saved, in seconds: a token that it brought is worth ``unit``, each of its verified
        rows took ``row_seconds``."""
        brought = self.brought()
        return {
            drafter: brought.get(drafter, 0) * unit - took - self.verified_origins.count(drafter) * row_seconds
            for drafter, took in self.seconds.items()
        }

    def verified_levels(self, drafter: str, levels: int) -> int:
        """How deep the drafter's nodes were verified, of ``levels`` that it drafted."""
        depths = [depth for depth, name in zip(self.verified.depths(), self.verified.drafters, strict=True) if name == drafter]
        return min(levels, max(depths, default=0))


def share_deciding(rounds: list[Round], spent: float) -> None:
    """What the round took beyond the drafters' own time (choosing, merging, keeping the books) is charged to those who bid."""
    asked = [(round, name) for round in rounds for name in round.seconds]
    share_out(spent - sum(round.seconds[name] for round, name in asked), asked)


def share_out(seconds: float, asked: list[tuple[Round, str]]) -> None:
    """Charge drafters for something that was done for all of them, the same to each in each round."""
    for round, name in asked:
        round.seconds[name] += seconds / len(asked)


def kind_of(params: SamplingParams, flat: bool = False) -> str:
    """The kind of sampling: how far the target's choices can be foreseen depends on its temperature, and on whether the law that it
    last drew from was ``flat``."""
    if params.greedy:
        return "greedy"
    if flat:
        return "flat"
    return "warm" if params.temperature <= 0.9 else "hot"
