"""Messages to prompt text, by the chat template that a model brings along (Jinja, as Hugging Face defines it).

The template is a stranger's code and is treated so: it is rendered by ``chat_worker`` in a process of its own, in Jinja's
immutable sandbox, with bounds on source, output, memory and time. Templates cannot load files or other templates.
``chat_prompt`` makes tokens of what it writes.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hasten.core.errors import InvalidRequest, UnsupportedModel
from hasten.model.control_marks import Marks, escaped
from hasten.model.tokenizer import Tokenizer

__all__ = ["BrokenTemplate", "ChatTemplate", "checked_messages"]

MAXIMUM_SOURCE = 256 << 10  # characters
MAXIMUM_REQUEST = 64 << 20  # bytes
MAXIMUM_DEPTH = 64  # of lists and objects in a message or tool
RENDER_SECONDS = 2.0
START_SECONDS = 20.0
WORKER = Path(__file__).with_name("chat_worker.py")
NO_MARKS = Marks()
OWN_NAMES = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")


class BrokenTemplate(UnsupportedModel):
    """The template itself is wrong, however often it is asked."""


class ChatTemplate:
    """The template of one model. Safe to use from several threads; they take turns.

    ``source`` is the template, None where the model has none; ``bos`` and ``eos`` are the texts of its begin and end tokens,
    empty where it has none. Raises UnsupportedModel when there is no template or it is too long. The process that renders
    starts with the first chat and ends with this object.
    """

    def __init__(self, source: str | None, bos: str, eos: str) -> None:
        if source is None:
            raise UnsupportedModel(
                "This model has no chat template, so it is no chat model; give plain text with --prompt, or choose an "
                "instruction-tuned model."
            )
        if len(source) > MAXIMUM_SOURCE:
            raise UnsupportedModel(
                f"The model's chat template has {len(source)} characters where {MAXIMUM_SOURCE} are allowed; "
                "give plain text instead of a chat."
            )
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The template that came with a tokenizer. Raises UnsupportedModel when there is none."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_ids
        return cls(
            tokenizer.chat_template,
            bos="" if bos is None else tokenizer.token_text(bos),
            eos=tokenizer.token_text(eos[0]) if eos else "",
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        marks: Marks = NO_MARKS,
    ) -> str:
        """The prompt of a chat. ``messages`` have a ``role`` and a ``content`` (text, or a list of text parts, which are
        joined by line breaks; a message with ``tool_calls`` may have none). ``extra`` are further names for the template.
        Control tokens that the template itself writes become their ``marks``, those that are spelled in messages never.

        Raises InvalidRequest when the messages are malformed or the template refuses them, UnsupportedModel when the
        template itself cannot be used.
        """
        names: dict[str, Any] = {
            "messages": checked_messages(messages),
            "tools": None if tools is None else _plain(list(tools), "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        for name, value in (extra or {}).items():
            if name in OWN_NAMES or not name.isidentifier():
                raise InvalidRequest(f"'{name}' cannot be given to the chat template; choose another name.")
            names[name] = _plain(value, name)
        given = json.dumps(names)
        if escaped(marks.secret) in given:
            raise InvalidRequest("The messages hold signs that have a meaning of their own here; leave them out.")
        shown, meant = marks.applied(names, given, self.source)
        request = self._request(given if shown is names else json.dumps(shown), marks)
        with self._lock:
            answer = self._ask(request)
        if "text" not in answer:
            _fail(answer["error"], marks.restored(answer["message"], meant))
        return marks.finished(str(answer["text"]), meant)

    def _request(self, names: str, marks: Marks) -> bytes:
        """What the worker is asked; ``names`` is JSON. Raises InvalidRequest where it is too long."""
        own = {name: marks.written.get(text, text) for name, text in self._tokens.items()}
        head = json.dumps({"source": self.source, "marks": dict(marks.written)})
        request = f'{head[:-1]}, "names": {names[:-1]}, {json.dumps(own)[1:]}}}'.encode()
        if len(request) > MAXIMUM_REQUEST:
            raise InvalidRequest(f"The messages take {len(request) >> 20} MiB where {MAXIMUM_REQUEST >> 20} are allowed.")
        return request

    def _ask(self, request: bytes) -> dict[str, str]:
        """One question to the worker, which is started where there is none and ended where it does not answer.

        One that is gone without an answer may have been ended by anybody: a new one is asked once more.
        """
        answer: dict[str, str] = {}
        for _ in range(2):
            if self._worker is None or not self._worker.alive:
                self._worker = _Worker()
            answer = self._worker.ask(request, RENDER_SECONDS)
            if answer.get("error") != "died":
                break
        return answer


class _Worker:
    """A running ``chat_worker``. It is killed when a question takes too long, and when this object goes."""

    def __init__(self) -> None:
        # Only what Python itself and the local time need: a template has no business with the environment.
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ", "SYSTEMROOT") if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # else the terminal's Ctrl-C, which is meant for an answer, would end it
                env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"},
            )
        except OSError as problem:
            raise _no_worker() from problem
        weakref.finalize(self, _end, self._process)
        self._given_up = False
        if self.ask(json.dumps({"source": "", "names": {}}).encode(), START_SECONDS) != {"text": ""}:
            _end(self._process)
            raise _no_worker()

    @property
    def alive(self) -> bool:
        """Whether it can be asked: it runs, and was not ended here."""
        return not self._given_up and self._process.poll() is None

    def ask(self, request: bytes, seconds: float) -> dict[str, str]:
        """The worker's answer; of kind "time" where it had to be killed, "died" where it is gone without one."""
        late, process = threading.Event(), self._process

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            answer = self._exchange(request)
        finally:
            timer.cancel()
        if answer is None or late.is_set() or answer.get("error") == "memory":
            _end(self._process)
            self._given_up = True
        return answer if answer is not None else {"error": "time" if late.is_set() else "died", "message": ""}

    def _exchange(self, request: bytes) -> dict[str, str] | None:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        try:
            requests.write(struct.pack(">I", len(request)) + request)
            requests.flush()
            head = answers.read(4)
            data = answers.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""
            return dict(json.loads(data))
        except (OSError, ValueError):
            return None  # it is gone


def _no_worker() -> UnsupportedModel:
    return UnsupportedModel(
        f"The process that renders chat templates does not start ({sys.executable}); give plain text instead of a chat."
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue  # what was not written has no reader any more
    process.wait()


def _fail(kind: str, message: str) -> NoReturn:
    """Turn a worker's complaint into one sentence."""
    said = " ".join(message.split())[:300]
    if kind == "refused":
        raise InvalidRequest(f"The model's chat template refuses these messages: {said}")
    if kind == "messages":
        raise InvalidRequest(f"The model's chat template fails on these messages ({said}); send other ones.")
    if kind == "size":
        raise InvalidRequest("The chat is longer than 4 MiB once rendered; send shorter messages.")
    reasons = {
        "time": f"takes more than {RENDER_SECONDS:g} seconds",
        "memory": "needs more than 1 GiB of memory",
        "died": "ended the process that renders it",
        "template": f"cannot be used ({said})",
    }
    failure = BrokenTemplate if kind == "template" else UnsupportedModel
    raise failure(f"The model's chat template {reasons[kind]}; give plain text instead of a chat.")


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plain copies of the messages, their contents as one text each. Raises InvalidRequest when they are malformed."""
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest("messages must be a list of at least one object with role and content.")
    return [_checked_message(at, message) for at, message in enumerate(messages)]


def _checked_message(at: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"messages[{at}] must be an object with role and content, not a {type(message).__name__}.")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"messages[{at}] must have a role such as system, user or assistant.")
    if isinstance(content, list):
        content = "\n".join(_part_text(at, part) for part in content)
    elif content is None and not message.get("tool_calls"):
        raise InvalidRequest(f"messages[{at}] must have content: text, or a list of text parts.")
    elif content is not None and not isinstance(content, str):
        raise InvalidRequest(f"messages[{at}] has content that is a {type(content).__name__}; send text or a list of text parts.")
    plain: dict[str, Any] = _plain(dict(message) | {"content": None}, f"messages[{at}]")
    return plain | {"content": content}


def _part_text(at: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) and kind == "text" else None
    if not isinstance(text, str):
        raise InvalidRequest(f"messages[{at}] has a part of type {kind!r:.40}; this model reads text parts only.")
    return text


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """A copy of plain JSON types, so that a template never meets an object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth < MAXIMUM_DEPTH and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, name, depth + 1) for key, item in value.items()}
    if depth < MAXIMUM_DEPTH and isinstance(value, list | tuple):
        return [_plain(item, name, depth + 1) for item in value]
    raise InvalidRequest(f"{name} must be plain JSON, nested at most {MAXIMUM_DEPTH} deep; it holds a {type(value).__name__}.")
