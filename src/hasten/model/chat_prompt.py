"""Messages to a prompt's tokens, in which control tokens are the template's alone.

What a client sends is text: the contents and names of messages, calls and results of tools, their descriptions, further names
for the template. Where it spells a control token (``<|im_end|>``), the prompt holds the ordinary tokens of those characters.
Control tokens are those that the model's files call so, its begin and end tokens, and whatever its template puts directly
around a user's words. Other added tokens that the template spells (``<tool_call>``, ``<think>``) are the markup of what models
and operators write: in their own contents and reasoning (system's and assistant's) they stay tokens, from everybody else they are
text. Added tokens that the template does not spell (Gemma's line breaks and runs of spaces) are text in a single token anyway.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hasten.core.errors import InvalidRequest
from hasten.model.chat import BrokenTemplate, ChatTemplate
from hasten.model.control_marks import Marks, new_secret
from hasten.model.tokenizer import SPACE_MARK, Tokenizer

__all__ = ["ChatPrompts"]

Message = Mapping[str, Any]

WORDS = "hello"
ASK: list[Message] = [{"role": "user", "content": WORDS}]
BLANK = f" \t\r\n{SPACE_MARK}"
PLAIN = re.compile(r"[\w-]+")
ROLE = re.compile(r"[\w-]{1,32}")
MAXIMUM_ROLES = 32  # that a template is looked at with
NEAR = 32  # characters between a turn's border and its words: the name of a role, line breaks
_CALL = {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
_TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "Look", "parameters": {"type": "object", "properties": {}}}}
]
_ANSWERED: list[Message] = [*ASK, {"role": "assistant", "content": WORDS}]
_RULED: list[Message] = [{"role": "system", "content": WORDS}, *_ANSWERED, *ASK]
_CALLED: list[Message] = [
    *ASK,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": WORDS, "name": "look", "tool_call_id": "call00000"},
]
# (messages, generation prompt, tools): a template may refuse some of them.
Probe = tuple[list[Message], bool, list[dict[str, Any]] | None]
PROBES: tuple[Probe, ...] = (
    (ASK, False, None),
    (ASK, True, None),
    (_ANSWERED, False, None),
    (_RULED, True, None),
    (_CALLED, True, _TOOLS),
)


class ChatPrompts:
    """Makes prompts by the template of one tokenizer. Safe to use from several threads.

    Raises UnsupportedModel when there is no template or it is too long. The template is looked at closer with the first chat.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate.of(tokenizer)
        self._lock = threading.Lock()
        self._marks: Marks | None = None
        self._roles = {"system", "user", "assistant", "tool"}  # that the template was asked for

    def tokens(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        unfinished: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, ready for the model's turn; ``unfinished``: for more of the last message, whose content is
        a text.

        Raises InvalidRequest when the messages are malformed or the template refuses them, UnsupportedModel when the template
        cannot be used.
        """
        with self._lock:
            if self._marks is None:
                self._marks = self._learn()
            for role in self._new_roles(messages):
                self._marks = self._with_role(role, self._marks)
                self._roles.add(role)
            marks = self._marks
        if unfinished:
            text = self._unfinished(messages, tools, extra, marks)
        else:
            text = self._template.render(messages, tools=tools, extra=extra, marks=marks)
        return self._tokenizer.encode_marked(text)

    def _unfinished(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        extra: Mapping[str, Any] | None,
        marks: Marks,
    ) -> str:
        """A conversation up to the end of its last message's content. What the template writes behind that is cut off; a mark says
        where, because content may be trimmed or be found twice."""
        end = secrets.token_hex(16)
        last = {**messages[-1], "content": f"{messages[-1]['content']}{end}"}
        text = self._template.render([*messages[:-1], last], add_generation_prompt=False, tools=tools, extra=extra, marks=marks)
        begun, found, _ = text.rpartition(end)
        if not found:
            raise InvalidRequest(
                "The model's chat template does not show the last message's text; let a user's message be the last."
            )
        return begun

    def _learn(self) -> Marks:
        """Marks for all control tokens that the template writes, known to the tokenizer. Raises UnsupportedModel where the template
        cannot be used, or not now."""
        tokenizer, source = self._tokenizer, self._template.source
        named = {*tokenizer.eos_token_ids, tokenizer.bos_token_id}
        special = tokenizer.special_ids.intersection(tokenizer.added)
        spelled = {token for token, text in tokenizer.added.items() if text in source and not _plain(text)}
        control = {token for token in special if not _plain(tokenizer.added[token])}
        marks = self._with(Marks(secret=new_secret(source)), control & (spelled | named))
        try:
            borders = self._borders(self._template.render(ASK, add_generation_prompt=False, marks=marks))
        except InvalidRequest:  # where it cannot be used at all, that is said, and the next chat learns
            borders = set()
        markup = {token for token in spelled - control - borders if _encloses(tokenizer.added[token])}
        marks = self._with(marks, borders & spelled | markup, frozenset(tokenizer.added[token] for token in markup))
        # Nobody can tell a word of the template from the token of that name: it stays what it is to the tokenizer everywhere.
        words = {token for token in special - control if tokenizer.added[token] in source}
        return self._composing(borders - spelled - control | words | self._found(PROBES, marks), marks)

    def _new_roles(self, messages: Sequence[Message]) -> list[str]:
        """The roles of messages, which may be malformed, that the template was not asked for: words only, and a bounded number."""
        listed = messages if isinstance(messages, Sequence) else ()
        roles = dict.fromkeys(str(message.get("role")) for message in listed if isinstance(message, Mapping))
        new = [role for role in roles if role not in self._roles and ROLE.fullmatch(role)]
        return new[: max(MAXIMUM_ROLES - len(self._roles), 0)]

    def _with_role(self, role: str, marks: Marks) -> Marks:
        """The same and marks for tokens that the template puts together of the name of this role; but none that begins or ends a
        text, and no words, which it may hold without being meant. Raises UnsupportedModel where it cannot be asked now."""
        said: Message = {"role": role, "content": WORDS}
        found = self._found([([*ASK, said], True, None), ([said, *ASK], True, None)], marks)
        found -= {*self._tokenizer.eos_token_ids, self._tokenizer.bos_token_id}
        return self._composing({token for token in found if not _plain(self._tokenizer.added[token])}, marks)

    def _found(self, probes: Iterable[Probe], marks: Marks) -> set[int]:
        """The control tokens that the template puts together for these. Raises UnsupportedModel where it cannot be asked now."""
        tokenizer, all_found = self._tokenizer, set()
        for messages, prompt, tools in probes:
            try:
                text = self._template.render(messages, add_generation_prompt=prompt, tools=tools, marks=marks)
            except (InvalidRequest, BrokenTemplate):  # but not where it only took too long: then the next chat learns
                continue
            found = tokenizer.control_ids.intersection(tokenizer.encode(text, add_bos=False))
            all_found |= {token for token in found if tokenizer.added[token] in text}  # unknown characters have a token, too
        return all_found

    def _composing(self, tokens: Iterable[int], marks: Marks) -> Marks:
        """The same and marks for these tokens, which the template puts together."""
        return Marks(marks.written, {**marks.composed, **self._marked(tokens, marks)}, marks.lent, marks.secret)

    def _with(self, marks: Marks, tokens: Iterable[int], lent: frozenset[str] = frozenset()) -> Marks:
        """The same and marks for these tokens, which the template spells."""
        return Marks({**marks.written, **self._marked(tokens, marks)}, marks.composed, marks.lent | lent, marks.secret)

    def _marked(self, tokens: Iterable[int], marks: Marks) -> dict[str, str]:
        """A mark for each token, by spelling; where it has one already, that one."""
        known = {**marks.composed, **marks.written}
        spelled = {token: self._tokenizer.added[token] for token in sorted(tokens)}
        new = [token for token, text in spelled.items() if text not in known]
        given = {token: marks.mark(len(known) + place) for place, token in enumerate(new)}
        self._tokenizer.add_marks(given)
        return {text: given[token] if token in given else known[text] for token, text in spelled.items()}

    def _borders(self, text: str) -> set[int]:
        """The added tokens nearest to a user's words on either side."""
        before, found, behind = text.partition(WORDS)
        if not found:
            return set()
        sides = (self._tokenizer.encode_marked(before[-NEAR:])[::-1], self._tokenizer.encode_marked(behind[:NEAR]))
        shown = [[token for token in side if not _plain(self._tokenizer.added.get(token, ""))] for side in sides]
        return {side[0] for side in shown if side}


def _plain(text: str) -> bool:
    """Whether a token is spelled like an ordinary word or spaces."""
    return not text.strip(BLANK) or PLAIN.fullmatch(text) is not None


def _encloses(text: str) -> bool:
    """Whether a token is spelled like a mark, a name between signs, rather than like code."""
    ends = text[0] + text[-1]
    return any(character.isalnum() for character in text) and not any(
        character.isalnum() or character.isspace() or character == "_" for character in ends
    )
