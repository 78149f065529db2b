"""What is fuzzed: each target takes any bytes and returns, or raises where the product has a fault. ``SEEDS`` are sound inputs to
begin from."""

from __future__ import annotations

import encodings
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jinja2.debug  # noqa: F401 (Jinja imports it with a template's first error; that is no deed of the template)

from hasten.core.errors import InvalidRequest, ModelError
from hasten.model import chat_worker
from hasten.model.loaders import open_source
from hasten.serve import messages, responses
from hasten.serve.basics import DetokenizeRequest, TokenizeRequest
from hasten.serve.body import parse_json, validated
from hasten.serve.chat import ChatRequest
from hasten.serve.embeddings import EmbeddingRequest
from hasten.serve.errors import ApiError, openai_body
from hasten.serve.limits import Limits
from hasten.serve.messages_in import for_template
from hasten.serve.tools import ToolReader, toolset_of
from hasten.serve.wire import CompletionRequest, sampling_params

LIMITS = Limits()
HERMES = "{% if tools %}<tool_call></tool_call>{% endif %}"
KINDS: tuple[type[Any], ...] = (
    ChatRequest,
    CompletionRequest,
    responses.ResponsesRequest,
    messages.MessagesRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
SECONDS = 2  # for one template; the product bounds the process that renders it


def body(data: bytes) -> None:
    """A request's body, from bytes to the engine's parameters; the first byte chooses the route. What is refused is refused with a
    4xx in one line."""
    if not data:
        return
    refusal = None
    try:
        _read(KINDS[data[0] % len(KINDS)], data[1:])
    except ApiError as problem:
        refusal = problem
    except InvalidRequest:
        return
    if refusal is not None:
        assert 400 <= refusal.status < 500, refusal.status
        assert "\n" not in refusal.message, refusal.message
        assert len(refusal.message) < 2000, len(refusal.message)
        json.dumps(openai_body(refusal)).encode()


def _read(kind: type[Any], content: bytes) -> None:
    wire: Any = validated(kind, parse_json(content, LIMITS))
    if kind is responses.ResponsesRequest:
        wire = responses.as_chat(wire)
    elif kind is messages.MessagesRequest:
        wire = messages.as_chat(wire)
    if isinstance(wire, CompletionRequest):
        wire.check_supported()
        wire.prompts()
        sampling_params(wire, LIMITS, wire.output_limit(LIMITS), wire.logprobs)
    if isinstance(wire, ChatRequest):
        wire.check_supported()
        json.dumps(for_template(wire.messages)).encode()
        sampling_params(wire, LIMITS, wire.max_tokens, wire.top_logprobs)
        tools = toolset_of(wire, HERMES)
        if tools is not None:
            for part in (str(wire.messages), json.dumps(wire.messages)):
                reader = ToolReader(tools)
                reader.feed("<tool_call>" + part)
                reader.finish()


def weights(data: bytes) -> None:
    """A GGUF file: it loads, or raises ModelError; nothing else."""
    path = _folder() / "fuzzed.gguf"
    path.write_bytes(data)
    refusal = ""
    try:
        source = open_source(path)
        for name in source.names():
            source.read(name)
    except ModelError as problem:
        refusal = str(problem)
    assert refusal.isprintable(), refusal


def template(data: bytes) -> None:
    """A chat template: it makes text of bounded length or a named error, and touches nothing of the machine."""
    source = data.decode("utf-8", "replace")
    found: dict[str, str] = {"text": ""}
    with _bounded(), _touching_nothing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to show one, Python opens the file that it is about
        found = chat_worker.answer({}, source, {**NAMES, "messages": [dict(message) for message in MESSAGES]})
    assert set(found) in ({"text"}, {"error", "message"}), found
    assert len(found.get("text", "")) <= chat_worker.MAXIMUM_OUTPUT


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
]
NAMES: dict[str, Any] = {
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
}
FORBIDDEN = ("open", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "import", "pathlib.", "glob.", "urllib.")
_watching = False
_touched: list[str] = []


def _watch(event: str, arguments: Any) -> None:
    codec = event == "import" and str(arguments[0]).startswith("encodings.")  # text's own: nothing but Python's codecs is looked up
    nowhere = event == "open" and arguments[0] == chat_worker.NO_FILE
    if _watching and event.startswith(FORBIDDEN) and not (codec or nowhere):
        _touched.append(f"{event} {arguments!r}"[:200])


@contextmanager
def _touching_nothing() -> Iterator[None]:
    """An audit hook notes each file, process, socket and import; there must be none."""
    global _watching
    if not _hooked:
        for module in pkgutil.iter_modules(encodings.__path__):  # so that the first use of one opens no file
            with suppress(ImportError):
                importlib.import_module(f"encodings.{module.name}")
        sys.addaudithook(_watch)
        _hooked.append(True)
    _touched.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert not _touched, _touched


_hooked: list[bool] = []


@contextmanager
def _bounded() -> Iterator[None]:
    """Rendering that takes too long is interrupted, as the product does by ending the process."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except TimeoutError:
        return
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)  # None: a handler that is not Python's


def _folder() -> Path:
    """A folder in memory where there is one; a million files are no work for a disk."""
    if not _folders:
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        _folders.append(tempfile.TemporaryDirectory(prefix="hasten-fuzz-", dir=place))
    return Path(_folders[0].name)


_folders: list[tempfile.TemporaryDirectory[str]] = []

# ruff: noqa: E501 (from here on: seeds)
_CHAT: dict[str, Any] = {
    "model": "tiny", "messages": [{"role": "user", "content": "one"}], "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3,
    "min_p": 0.1, "seed": 1, "n": 2, "stop": ["x"], "logit_bias": {"5": 1.5}, "logprobs": True, "top_logprobs": 2, "stream": True,
    "stream_options": {"include_usage": True}, "presence_penalty": 0.5, "response_format": {"type": "json_schema", "json_schema": {
        "name": "a", "schema": {"type": "object"}}}, "speculation": {"mode": "on", "nodes": 3}, "provenance": True, "deadline": 1.5,
}  # fmt: skip
_TOOLS: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"}, "structured_outputs": {"regex": "a+"},
}  # fmt: skip
_BODIES: list[tuple[int, dict[str, Any]]] = [
    (0, _CHAT),
    (0, _TOOLS),
    (1, {"prompt": ["a", "b"], "max_tokens": 3, "echo": True, "best_of": 1, "logprobs": 2, "suffix": ""}),
    (1, {"prompt": [[1, 2], [3]], "structured_outputs": {"choice": ["a"]}}),
    (2, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], "instructions": "b", "text": {
        "format": {"type": "json_schema", "name": "a", "schema": {}}}, "max_output_tokens": 4, "store": False}),
    (3, {"model": "tiny", "max_tokens": 3, "system": [{"type": "text", "text": "s"}], "messages": [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}],
        "tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "f"}, "thinking": {"type": "disabled"}}),
    (4, {"input": ["a"], "encoding_format": "base64", "pooling": "last", "dimensions": 4}),
    (5, {"messages": [{"role": "user", "content": "x"}], "add_special_tokens": False, "return_token_strs": True}),
    (6, {"tokens": [1, 2, 3]}),
]  # fmt: skip
_TEMPLATES = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message.content | trim }}{% endfor %}",
    "{%- if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}{% if add_generation_prompt %}a{% endif %}",
    "{% set ns = namespace(x=1) %}{% for i in range(9) %}{% set ns.x = ns.x * i %}{% if i > 3 %}{% break %}{% endif %}{% endfor %}{{ ns.x }}",
    "{% macro m(a, b='') %}{{ a ~ b }}{% endmacro %}{{ m(bos_token) }}{{ raise_exception('no') if messages | length > 9 else '' }}",
    "{% generation %}{{ messages[0]['content'].split('a')[-1] | upper }}{% endgeneration %}{{ strftime_now('%Y') }}{{ dict(a=1).items() | list }}",
    "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}{{ '%s' % 1 }}{{ '{0.x}'.format(1) }}{{ cycler.__init__.__globals__ }}",
)


def _gguf() -> bytes:
    """A sound small file of each kind of value and two kinds of tensors."""
    import gguf
    import numpy as np

    path = _folder() / "seed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_string("general.name", "seed")
    writer.add_bool("general.flag", True)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    writer.add_tensor("token_embd.weight", np.ones((3, 32), dtype=np.float32))
    quantised = gguf.quants.quantize(np.ones((2, 32), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


TARGETS: dict[str, Callable[[bytes], None]] = {"body": body, "weights": weights, "template": template}
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "body": lambda: [bytes([kind]) + json.dumps(value).encode() for kind, value in _BODIES],
    "weights": lambda: [_gguf()],
    "template": lambda: [text.encode() for text in _TEMPLATES],
}
