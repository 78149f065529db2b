"""Answers of a given form: JSON, a JSON schema, a regular expression, a Lark grammar, one of several texts.

The parsing is llguidance's (Earley over derivative-based regular expressions: linear time in the text, no backtracking), an extra
of this package. The state of an answer follows the path that verification walks, so each node of a tree is masked by exactly what
precedes it, and drafts change nothing in the text.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch

from hasten.core.errors import HastenError, InvalidRequest
from hasten.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Kind = Literal["json", "regex", "lark"]
Result = TypeVar("Result")
MOST_COMPILED = 64
MOST_CHARACTERS = 256 << 10
# Of JSON's free space only so much is allowed that an answer stays readable: a small model would go on with blanks for ever.
WHITESPACE = r"( |\n {0,8})"


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has to look like. ``text``: a JSON schema, a regular expression, or a Lark grammar in llguidance's dialect.
    ``lenient``: what of a schema llguidance does not know is left out."""

    kind: Kind
    text: str
    lenient: bool = False


class GrammarState:
    """One answer's place in its grammar (a ``Constraint``). Copies of a matcher share the states of its lexer, of which a form may
    have so many: ``anew`` makes one without any, for an answer that those before it have left too few."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, anew: Callable[[], LLMatcher]) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._anew = anew
        self._accepted: list[int] = []
        self._ahead: list[int] = []  # consumed beyond what is accepted

    def allowed_after(self, path: Sequence[int]) -> torch.Tensor | None:
        """bool [vocabulary]. None behind the end of the grammar, where nothing is emitted any more."""
        if not self._able(lambda: self._go_to(path)):
            return None
        bits = np.frombuffer(self._able(lambda: self._matcher.compute_bitmask()), np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocabulary].view(np.bool_))

    def accept(self, tokens: Sequence[int]) -> None:
        """Raises HastenError when the grammar does not allow them."""
        if not self._able(lambda: self._go_to(tokens)):
            raise HastenError("The answer has left the form that was asked for; that is our mistake, please report it.")
        self._accepted += self._ahead
        self._ahead.clear()

    def _go_to(self, path: Sequence[int]) -> bool:
        """Be where the accepted tokens and ``path`` lead; False where that is not possible."""
        shared = 0
        while shared < min(len(path), len(self._ahead)) and path[shared] == self._ahead[shared]:
            shared += 1
        if shared < len(self._ahead):
            self._matcher.rollback(len(self._ahead) - shared)
            del self._ahead[shared:]
        wanted = list(path[shared:])
        if wanted:
            taken = self._matcher.try_consume_tokens(wanted)
            self._ahead += wanted[: 0 if self._matcher.is_error() else taken]
        return len(self._ahead) == len(path)

    def _able(self, step: Callable[[], Result]) -> Result:
        """What ``step`` brings, if need be with states of its own. Raises InvalidRequest when these are too few as well."""
        found = step()
        if self._matcher.is_error():
            self._matcher = self._anew()
            self._matcher.try_consume_tokens([*self._accepted, *self._ahead])
            found = step()
        if self._matcher.is_error():
            raise InvalidRequest(
                f"The form that was asked for is too hard to follow ({_short(self._matcher.get_error())}); ask for a simpler one."
            )
        return found


class Grammars:
    """Compiles forms for one model and remembers the latest, of each tenant for itself: how soon a form is ready tells nobody what
    others ask for. Safe from any thread.

    Raises InvalidRequest when the package llguidance is not installed, or no token of the model ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        try:
            import llguidance
        except ImportError as problem:
            raise InvalidRequest(
                "Answers of a given form need the package llguidance; install it with `pip install 'hasten[structured]'`."
            ) from problem
        if not tokenizer.eos_token_ids:
            raise InvalidRequest("This model names no token that ends an answer, so none can have a form; ask for plain text.")
        self._library = llguidance
        # Bounds on the work of a grammar, whatever it says: some hundredths of a second to build, some milliseconds a token.
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=1_000_000,
            step_lexer_fuel=200_000,
            step_max_items=50_000,
            max_lexer_states=50_000,
            max_grammar_size=100_000,
            verbose_errors=False,
        )
        self._vocabulary = vocabulary
        self._backend: LLTokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Spelling(tokenizer, vocabulary)),
            n_vocab=vocabulary,
            eos_token=list(tokenizer.eos_token_ids),
        )
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, Form], LLMatcher] = OrderedDict()

    def compile(self, form: Form, tenant: str = "") -> Callable[[], GrammarState]:
        """Makes states of that form for ``tenant``. Raises InvalidRequest, one sentence, when it cannot be understood or is too
        large."""
        with self._lock:
            matcher = self._compiled.get((tenant, form))
            if matcher is not None:
                self._compiled.move_to_end((tenant, form))
        if matcher is None:
            matcher = self._kept(form, tenant)
        return lambda: GrammarState(matcher.deep_copy(), self._vocabulary, lambda: self._kept(form, tenant).deep_copy())

    def _kept(self, form: Form, tenant: str) -> LLMatcher:
        """A matcher made now, which is the one of that form from now on. Where there are too many, whoever has most loses one."""
        matcher = self._made(form)
        with self._lock:
            self._compiled[tenant, form] = matcher
            while len(self._compiled) > MOST_COMPILED:
                counts = Counter(owner for owner, _ in self._compiled)
                del self._compiled[next(key for key in self._compiled if counts[key[0]] == max(counts.values()))]
        return matcher

    def _made(self, form: Form) -> LLMatcher:
        what = {"json": "JSON schema", "regex": "regular expression", "lark": "grammar"}[form.kind]
        if len(form.text) > MOST_CHARACTERS:
            raise InvalidRequest(f"The {what} has {len(form.text)} characters and at most {MOST_CHARACTERS} are allowed.")
        build = self._library.LLMatcher
        try:
            if form.kind == "json":
                overrides: Any = {"whitespace_pattern": WHITESPACE, "lenient": form.lenient}
                grammar = build.grammar_from_json_schema(form.text, overrides=overrides)
            elif form.kind == "regex":
                grammar = build.grammar_from_regex(form.text)
            else:
                grammar = build.grammar_from_lark(form.text)
            matcher = build(self._backend, grammar, log_level=0, limits=self._limits)
        except ValueError as problem:
            raise InvalidRequest(f"The {what} cannot be used ({_short(str(problem))}).") from problem
        if matcher.is_error():
            raise InvalidRequest(f"The {what} cannot be used ({_short(matcher.get_error())}).")
        matcher.compute_bitmask()  # an impossible start shows here, before the request is queued
        if matcher.is_error():
            raise InvalidRequest(f"The {what} cannot be used ({_short(matcher.get_error())}).")
        matcher.reset()
        return matcher


class _Spelling:
    """What llguidance wants to know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self.eos_token_id = tokenizer.eos_token_ids[0]
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocabulary)]
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocabulary)
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode(), add_bos=False, allow_special=False)


def choice(texts: Sequence[str]) -> Form:
    """The form of an answer that is one of these texts."""
    return Form("lark", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
