"""The vocabulary of the engine: what travels between its rooms. Imports no torch and nothing else of Hasten but errors.

Words. A *row* is one token fed to the model in a step. The *root* of a round is the last known token of a sequence, which
has no keys and values yet. A *node* is a drafted token; its parent is another node or the root (``ROOT``). A node is
*accepted* when the target itself would have chosen it there; the *bonus* token is the target's own choice after the last
accepted node. *Context* is the number of positions of a sequence whose keys and values are committed in the pool.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from hasten.core.errors import InvalidRequest

ROOT = -1
BLOCK_SIZE = 64
MODEL_SOURCE = "model"  # provenance of a token that nobody drafted

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 17  # one more than a client of the server may give: the server has one of its own
MAX_LOGIT_BIAS = 4096
MAX_N = 64

FinishReason = Literal["stop", "length", "cancelled", "error"]


def _require(ok: bool, sentence: str) -> None:
    if not ok:
        raise InvalidRequest(sentence)


def _number(name: str, value: Any, low: float, high: float, allowed: str) -> float:
    """Python's own number of any real one, such as NumPy's."""
    ok = isinstance(value, Real) and not isinstance(value, bool) and bool(low <= value <= high)  # type: ignore[operator]
    _require(ok, f"{name} must be {allowed}, not {repr(value)[:40]}.")
    return value if type(value) is int else float(value)


def _integer(name: str, value: Any, low: int, high: int, allowed: str) -> int:
    """Python's own number of any whole one, such as NumPy's."""
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or not low <= whole <= high:
        raise InvalidRequest(f"{name} must be {allowed}, not {repr(value)[:40]}.")
    return whole


class _Fixed(dict[int, float]):
    """A mapping that stays as it is, and may be a key. Raises TypeError where somebody would change it."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Fixed, (dict(self),)

    def _refuse(self, *arguments: object, **named: object) -> NoReturn:
        raise TypeError("SamplingParams cannot be changed; make others with dataclasses.replace.")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


if TYPE_CHECKING:
    # What may be given and what is kept differ in type; of a dataclass only descriptors can say that.
    class Texts:
        def __get__(self, params: object, owner: type) -> tuple[str, ...]: ...
        def __set__(self, params: object, given: str | list[str] | tuple[str, ...]) -> None: ...

    class TokenIds:
        def __get__(self, params: object, owner: type) -> tuple[int, ...]: ...
        def __set__(self, params: object, given: list[int] | tuple[int, ...]) -> None: ...

    NOTHING: Any = ()
else:
    Texts, TokenIds, NOTHING = tuple[str, ...], tuple[int, ...], ()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen from the target's logits, and when a request ends.

    The defaults are greedy decoding. ``seed=None`` draws a fresh seed per request; a given seed makes the text repeatable,
    whatever the batch, the drafts or the load. ``n`` asks for that many answers; answer ``i`` uses a seed derived from
    (seed, i). ``top_p=0`` leaves the likeliest token only: the text of temperature 0. ``logprobs=k`` reports the chosen token's
    log-probability and the k most likely ones (0: chosen only). ``max_tokens=None`` generates until the context is full. ``stop``
    is a text or several. Numbers of other libraries become Python's own; nothing that was given is kept to be changed later.

    Raises InvalidRequest, one sentence, when a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Texts = NOTHING
    stop_token_ids: TokenIds = NOTHING
    max_tokens: int | None = 256
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, low, high, allowed in (
            ("temperature", 0.0, 100.0, "a number from 0 to 100"),
            ("top_p", 0.0, 1.0, "a number from 0 to 1"),
            ("min_p", 0.0, 1.0, "a number from 0 to 1"),
            ("repetition_penalty", 1e-2, 100.0, "a number from 0.01 to 100"),
            ("presence_penalty", -2.0, 2.0, "a number from -2 to 2"),
            ("frequency_penalty", -2.0, 2.0, "a number from -2 to 2"),
        ):
            object.__setattr__(self, name, _number(name, getattr(self, name), low, high, allowed))
        for name, least, most, allowed in (
            ("top_k", 0, 2**31 - 1, "a whole number of at least 1, or 0 for no limit"),
            ("max_tokens", 1, 2**31 - 1, "a whole number from 1 to 2147483647"),
            ("seed", 0, 2**64 - 1, "a whole number from 0 to 2^64 - 1"),
            ("logprobs", 0, MAX_TOP_LOGPROBS, f"a whole number from 0 to {MAX_TOP_LOGPROBS}"),
            ("n", 1, MAX_N, f"a whole number from 1 to {MAX_N}"),
        ):
            value = getattr(self, name)
            if value is not None or name not in ("max_tokens", "seed", "logprobs"):
                object.__setattr__(self, name, _integer(name, value, least, most, allowed))
        _require(isinstance(self.ignore_eos, bool), f"ignore_eos must be true or false, not {self.ignore_eos!r}.")
        self._take_collections()

    def _take_collections(self) -> None:
        """Check them and keep copies that nobody can change."""
        for name, kinds, allowed in (
            ("stop", (str, list, tuple), "a text or a list of texts"),
            ("stop_token_ids", (list, tuple), "a list of token ids"),
            ("logit_bias", (Mapping,), "a mapping of token ids to numbers"),
        ):
            value = getattr(self, name)
            _require(isinstance(value, kinds), f"{name} must be {allowed}, not {repr(value)[:40]}.")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        _require(len(stops) <= MAX_STOP_STRINGS, f"stop takes at most {MAX_STOP_STRINGS} strings, not {len(stops)}.")
        for text in stops:
            _require(isinstance(text, str) and text != "", f"each stop string must have at least one character, not {text!r}.")
        ids = tuple(_integer("each stop_token_ids entry", token, 0, 2**31 - 1, "a token id") for token in self.stop_token_ids)
        _require(len(self.logit_bias) <= MAX_LOGIT_BIAS, f"logit_bias takes at most {MAX_LOGIT_BIAS} entries.")
        bias = {
            _integer("each logit_bias key", token, 0, 2**31 - 1, "a token id"): _number(
                "each logit_bias value", value, -100.0, 100.0, "a number from -100 to 100"
            )
            for token, value in self.logit_bias.items()
        }
        for name, kept in (("stop", stops), ("stop_token_ids", ids), ("logit_bias", _Fixed(bias))):
            object.__setattr__(self, name, kept)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without chance: at temperature 0, and where ``top_p`` is 0 and leaves no other."""
        return self.temperature == 0.0 or self.top_p == 0.0

    @property
    def needs_history(self) -> bool:
        """Whether the choice at a node depends on the tokens before it (penalties), not on its logits alone."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(slots=True)
class DraftTree:
    """Drafted tokens after a root. Nodes stand in topological order: a parent has a smaller index than its children.

    ``scores[i]`` is the drafter's own estimate of P(node i accepted | its parent accepted), in [0, 1].
    ``drafters[i]`` names who proposed node i. Siblings have distinct tokens; ``add`` merges equal ones.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    drafters: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def child(self, parent: int, token: int) -> int | None:
        """Index of the child of ``parent`` that carries ``token``, or None."""
        for index in range(parent + 1, len(self.tokens)):
            if self.parents[index] == parent and self.tokens[index] == token:
                return index
        return None

    def add(self, parent: int, token: int, score: float, drafter: str) -> int:
        """Append a node, or find the equal sibling and keep the higher score; returns the node's index."""
        found = self.child(parent, token)
        if found is not None:
            self._raise(found, score, drafter)
            return found
        self._append(parent, token, score, drafter)
        return len(self.tokens) - 1

    def _append(self, parent: int, token: int, score: float, drafter: str) -> None:
        self.tokens.append(token)
        self.parents.append(parent)
        self.scores.append(score)
        self.drafters.append(drafter)

    def _raise(self, node: int, score: float, drafter: str) -> None:
        if score > self.scores[node]:
            self.scores[node], self.drafters[node] = score, drafter

    def join(self, parent: int, token: int, score: float, drafter: str) -> int:
        """``add`` for another drafter's guess: where both guess the same, it fails only if both do, as if they knew nothing of each
        other; it stays with the surer one."""
        found = self.child(parent, token)
        if found is None:
            return self.add(parent, token, score, drafter)
        self._agree(found, score, drafter)
        return found

    def _agree(self, node: int, score: float, drafter: str) -> None:
        both = 1.0 - (1.0 - self.scores[node]) * (1.0 - score)
        self._raise(node, score, drafter)
        self.scores[node] = both

    def merge(self, other: DraftTree) -> None:
        """``join`` every node of another drafter's tree; equal paths become one."""
        places = {key: node for node, key in enumerate(zip(self.parents, self.tokens, strict=True))}
        placed: list[int] = []
        for token, parent, score, drafter in zip(other.tokens, other.parents, other.scores, other.drafters, strict=True):
            at = ROOT if parent == ROOT else placed[parent]
            node = places.setdefault((at, token), len(self))
            if node == len(self):
                self._append(at, token, score, drafter)
            else:
                self._agree(node, score, drafter)
            placed.append(node)

    def depths(self) -> list[int]:
        """Depth of each node; a child of the root has depth 1."""
        out: list[int] = []
        for parent in self.parents:
            out.append(1 if parent == ROOT else out[parent] + 1)
        return out

    def survivals(self) -> list[float]:
        """P(node accepted) of each node: the product of scores along its path."""
        out: list[float] = []
        for parent, score in zip(self.parents, self.scores, strict=True):
            out.append(score if parent == ROOT else out[parent] * score)
        return out

    def path(self, node: int) -> list[int]:
        """Nodes from the root's child down to ``node``."""
        out: list[int] = []
        while node != ROOT:
            out.append(node)
            node = self.parents[node]
        return out[::-1]

    def keep(self, nodes: set[int]) -> DraftTree:
        """The sub-tree of ``nodes``, which must contain the parent of each of its members."""
        return self.arranged(sorted(nodes))

    def arranged(self, nodes: list[int]) -> DraftTree:
        """The sub-tree of ``nodes`` in this order, in which each one's parent stands before it."""
        place = {ROOT: ROOT}
        out = DraftTree()
        for node in nodes:
            place[node] = len(out)
            out._append(place[self.parents[node]], self.tokens[node], self.scores[node], self.drafters[node])
        return out

    def paths_in_line(self) -> list[int]:
        """All nodes, behind each the likeliest of its children and what is below that: the likeliest path stands first."""
        below: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            below.setdefault(parent, []).append(node)
        out: list[int] = []
        waiting = [ROOT]
        while waiting:
            node = waiting.pop()
            out.append(node)
            waiting += sorted(below.get(node, ()), key=lambda child: (self.scores[child], -child))
        return out[1:]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log) of the chosen token and of the most likely ones, after penalties and bias, before
    temperature and filters."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Verdict:
    """What verification decided for one sequence: ``path`` are the accepted nodes, ``tokens`` what is emitted (the accepted
    nodes' tokens and the bonus token, so one more than ``path``), ``logprobs`` one entry a token when asked for.

    ``likeliest`` holds the target's likeliest tokens after the root (entry 0) and after node i (entry i + 1), also of nodes that
    were not accepted; empty where no drafter asked (``Drafter.likeliest_wanted``).
    """

    path: list[int]
    tokens: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    likeliest: list[list[int]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer being generated. ``tokens`` are the prompt and the output so far; ``tokens[:computed]`` have keys and values
    in ``blocks``. A sequence has no phase: a step computes some of the tokens that are known and not computed."""

    id: int
    request_id: str
    params: SamplingParams
    seed: int
    tokens: list[int]
    prompt_length: int
    length_limit: int  # prompt and output together never pass this
    tenant: str = ""
    index: int = 0  # which of the request's n answers
    computed: int = 0
    cached: int | None = None  # prompt tokens found in the prefix cache; None while the sequence has never been admitted
    blocks: list[int] = field(default_factory=list)
    provenance: list[str] = field(default_factory=list)  # one name an output token: a drafter or MODEL_SOURCE
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prediction: list[int] = field(default_factory=list)  # what the caller expects the answer to be; empty: nothing
    leaders: int = 0  # how many of the largest logits decide about a token; 0: all of them may
    draw: Draw | None = None  # how a token is drawn where besides these only the one that is drawn decides
    laws: bool = False  # whole laws decide about drafts, so that behind them all logits may have a say

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def tokens_left(self) -> int:
        return self.length_limit - len(self.tokens)


@dataclass(frozen=True, slots=True)
class Draw:
    """Tokens are drawn from all logits: at each position the largest logit / temperature + noise (``sampling.choose``)."""

    temperature: float  # above 0
    seed: int


@dataclass(slots=True)
class Segment:
    """The rows of one sequence in a step: ``chain`` (known tokens that follow the context; the last one is the root when
    there is a tree) and then the nodes of ``tree``, which hang below the last chain token.

    Row i is written at virtual index ``context + i``. Its position is ``context + i`` for a chain row and
    ``context + len(chain) - 1 + depth`` for a node. Logits are wanted for all rows from ``first_logit`` on
    (``len(chain) + len(tree)`` asks for none): exact ones for the ``leaders`` largest of each row and for the one that
    ``draw`` draws, while the others may be anything that lies below these and is not drawn; 0 asks for exact ones throughout.
    """

    blocks: list[int]
    context: int
    chain: list[int]
    tree: DraftTree = field(default_factory=DraftTree)
    first_logit: int = 0
    leaders: int = 0
    draw: Draw | None = None

    @property
    def rows(self) -> int:
        return len(self.chain) + len(self.tree)


@dataclass(slots=True)
class Batch:
    """Segments of different sequences, one pass for all. ``likeliest``: how many of each row's largest logits to tell, if known."""

    segments: list[Segment]
    likeliest: int = 0

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)
