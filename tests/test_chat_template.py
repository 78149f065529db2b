"""Chat templates: equal to transformers on ordinary ones, bounded and closed to hostile ones."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from typing import Any

import pytest

from chats import CHATS, HI, TEMPLATES, TOOLS, Message
from hasten.core.errors import HastenError, InvalidRequest, UnsupportedModel
from hasten.model import chat
from hasten.model.chat import MAXIMUM_SOURCE, ChatTemplate
from hasten.model.gguf_tokenizer import tokenizer_from_metadata
from vocabularies import byte_level, gguf, real_tokenizer


def outcome(render: Any) -> str:
    """What was rendered, or that it failed."""
    try:
        return str(render())
    except Exception:
        return "failed"


def published(source: str, messages: list[Message], **names: Any) -> str:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = utilities.render_jinja_template([messages], chat_template=source, bos_token="<s>", eos_token="</s>", **names)
    return str(rendered[0])


@pytest.fixture(scope="module")
def templates() -> dict[str, ChatTemplate]:
    return {name: ChatTemplate(source, "<s>", "</s>") for name, source in TEMPLATES.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEMPLATES)
def test_equals_transformers(name: str, templates: dict[str, ChatTemplate]) -> None:
    rendered = set()
    for messages in CHATS:
        for prompt in (True, False):
            for tools in (None, TOOLS):
                for extra in ({}, {"enable_thinking": False}):
                    expected = outcome(
                        lambda: published(TEMPLATES[name], messages, add_generation_prompt=prompt, tools=tools, **extra)  # noqa: B023
                    )
                    ours = outcome(
                        lambda: templates[name].render(messages, add_generation_prompt=prompt, tools=tools, extra=extra)  # noqa: B023
                    )
                    assert ours == expected
                    rendered.add(ours)
    assert len(rendered - {"failed"}) >= 3


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_real_templates_equal_transformers(name: str) -> None:
    tokenizer = real_tokenizer(name)
    source = tokenizer.chat_template
    assert source is not None
    ours = ChatTemplate.of(tokenizer)
    for messages in CHATS:
        for tools in (None, TOOLS):
            expected = outcome(lambda: published(source, messages, add_generation_prompt=True, tools=tools))  # noqa: B023
            assert outcome(lambda: ours.render(messages, tools=tools)) == expected  # noqa: B023
    text = ours.render(CHATS[2])
    assert tokenizer.decode(tokenizer.encode(text, add_bos=False), skip_special=False) == text


@pytest.mark.real
def test_a_base_model_has_no_template() -> None:
    with pytest.raises(UnsupportedModel, match="--prompt"):
        ChatTemplate.of(real_tokenizer("gemma-3-270m"))


def test_the_template_of_a_tokenizer() -> None:
    metadata = byte_level() | {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}
    ours = ChatTemplate.of(tokenizer_from_metadata(metadata, "toy.gguf"))
    assert ours.render(HI) == "<|begin|>hi<|im_end|>"
    bare = {key: value for key, value in metadata.items() if "bos_token_id" not in key}
    assert ChatTemplate.of(tokenizer_from_metadata(bare | gguf(add_bos_token=False), "toy.gguf")).render(HI) == "hi<|im_end|>"


# --- messages -------------------------------------------------------------------------------------------------------------


def test_text_parts_are_joined(templates: dict[str, ChatTemplate]) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    assert templates["chatml"].render(messages) == templates["chatml"].render([{"role": "user", "content": "a\nb"}])
    assert messages == [{"role": "user", "content": parts}]


NESTED: Any = []
for _ in range(100):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "messages",
    [
        [], "hi", None, {"role": "user", "content": "hi"}, ["hi"], [None], [{}], [{"content": "hi"}], [{"role": "user"}],
        [{"role": "", "content": "hi"}], [{"role": 3, "content": "hi"}], [{"role": "user", "content": None}],
        [{"role": "user", "content": 3}], [{"role": "user", "content": ["hi"]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "hi", "name": object()}], [{"role": "user", "content": "hi", 3: 4}],
        [{"role": "user", "content": "hi", "deep": NESTED}],
    ],
)  # fmt: skip
def test_malformed_messages(messages: Any, templates: dict[str, ChatTemplate]) -> None:
    with pytest.raises(InvalidRequest, match=r"^(messages|messages\[0\]) .*\.$"):
        templates["chatml"].render(messages)


@pytest.mark.parametrize("extra", [{"messages": []}, {"bos_token": "x"}, {"not a name": 1}, {"x": object()}, {"x": {1: 2}}])
def test_malformed_extras(extra: Any, templates: dict[str, ChatTemplate]) -> None:
    with pytest.raises(InvalidRequest, match=r"\.$"):
        templates["chatml"].render(HI, extra=extra)


def test_what_a_template_refuses(templates: dict[str, ChatTemplate]) -> None:
    with pytest.raises(InvalidRequest, match=r"refuses these messages: After the optional system message"):
        templates["mistral"].render(CHATS[3])


def test_text_of_users_is_no_template(templates: dict[str, ChatTemplate]) -> None:
    assert "{{ 7 * 7 }}" in templates["chatml"].render(CHATS[1])


# --- hostile templates ------------------------------------------------------------------------------------------------------

WALKS = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['sys'] }}",
    "{{ dict.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__.os }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ joiner.__call__.__func__ }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{x.__class__.__init__.__globals__}'.format_map({'x': ''}) }}",
    "{{ ''.format.__globals__ }}",
    "{% set f = ''.format %}{{ f.__closure__ }}",
    "{% for x in [''] %}{{ loop.__class__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}{{ m._environment }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__call__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].content|map(attribute='__class__')|list }}",
    "{% include 'file' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends messages[0].content %}",
    "{{ open('/etc/passwd') }}",
    "{{ config }}{{ request.application.__globals__ }}",
    "{{ (messages|groupby('role'))[0].__getnewargs__ }}",
]


@pytest.mark.parametrize("source", WALKS)
def test_ways_out_are_closed(source: str) -> None:
    with pytest.raises((UnsupportedModel, InvalidRequest), match=r"\.$"):
        ChatTemplate(source, "", "").render(HI)


GROW = "{% set ns = namespace(x=START, y=START) %}{% for i in range(99) %}{% set ns.x = STEPx %}{% set ns.y = STEPy %}{% endfor %}"
DOUBLING = GROW.replace("START", "'a'").replace("STEPx", "ns.x ~ ns.x").replace("STEPy", "1")
SHARING = GROW.replace("START", "[1]").replace("STEPx", "[ns.x, ns.x]").replace("STEPy", "[ns.y, ns.y]")
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "product": "{{ 'a' * 10**10 }}",
    "filled": "{{ ('a' * 10**10)|length }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "long list": "{{ [0] * 10**10 }}",
    "long range": "{{ range(10**12)|list }}",
    "doubling": DOUBLING + "{{ ns.x|length }}",
    "shared lists": SHARING + "{{ ns.x }}",
    "shared lists as JSON": SHARING + "{{ ns.x|tojson }}",
    "comparison": SHARING + "{{ ns.x == ns.y }}",
    "recursion": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "tree": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "format filter": "{{ '%9999999999d'|format(1) }}",
    "format method": "{{ '{:>9999999999}'.format(1) }}",
    "centre": "{{ 'a'.center(10**10) }}{{ 'a'|center(10**10) }}",
    "indent": "{{ [[1]]|tojson(indent=10**10) }}",
    "rounding": "{{ 1.5|round(10**9, 'ceil') }}",
    "slices": "{{ [1]|slice(10**10)|list }}",
    "batches": "{{ [1]|batch(10**10, 0)|list }}",
    "replacement": "{% set x = ('a' * 10**5)|replace('a', 'b' * 10**5) %}{{ x|length }}",
    "lorem": "{{ lipsum(n=10**9)|length }}",
    "capture": "{% set x %}{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}{% endset %}{{ x|length }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}",
    "deep source": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "long source": "{{ 1" + " + 1" * 40000 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RENDER_SECONDS", 0.5)
    begin = time.monotonic()
    with pytest.raises((UnsupportedModel, InvalidRequest), match=r"\.$"):
        ChatTemplate(BOMBS[name], "", "").render(HI)
    assert time.monotonic() - begin < 2.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
def test_the_memory_limit() -> None:
    with pytest.raises(UnsupportedModel, match="memory"):
        ChatTemplate("{{ ('a' * (3 * 2**29))|length }}", "", "").render(HI)
    assert ChatTemplate("{{ ('a' * 2**28)|length }}", "", "").render(HI) == str(2**28)


def test_the_time_limit() -> None:
    begin = time.monotonic()
    with pytest.raises(UnsupportedModel, match="2 seconds"):
        ChatTemplate(BOMBS["loops"], "", "").render(HI)
    assert 2 <= time.monotonic() - begin < 4


def test_a_template_works_again_after_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% if messages|length > 1 %}{{ MANY * 10**11 }}{% endif %}ok".replace("MANY", "'a'")
    ours = ChatTemplate(source, "", "")
    for _ in range(2):
        with pytest.raises(UnsupportedModel, match="memory"):
            ours.render(HI * 2)
        assert ours.render(HI) == "ok"
    monkeypatch.setattr(chat, "RENDER_SECONDS", 0.5)
    ours = ChatTemplate("{% for i in range(99999) if messages|length > 1 %}{{ lipsum(n=10**9) }}{% endfor %}ok", "", "")
    with pytest.raises(UnsupportedModel, match="seconds"):
        ours.render(HI * 2)
    assert ours.render(HI) == "ok"


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% nonsense %}", "{{ x|nosuchfilter }}", "{% for %}"])
def test_malformed_templates(source: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"cannot be used .*\.$"):
        ChatTemplate(source, "", "").render(HI)


def test_long_and_missing_templates() -> None:
    with pytest.raises(UnsupportedModel, match="--prompt"):
        ChatTemplate(None, "", "")
    with pytest.raises(UnsupportedModel, match="characters"):
        ChatTemplate("a" * (MAXIMUM_SOURCE + 1), "", "")


def test_the_worker_sees_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a way out of the sandbox would meet no secrets, no files to write and no programs to start."""
    import subprocess

    seen: list[dict[str, str]] = []
    start = subprocess.Popen

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options["env"])
        return start(*args, **options)

    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setattr(subprocess, "Popen", spy)
    assert ChatTemplate("ok", "", "").render(HI) == "ok"
    assert "SECRET_TOKEN" not in seen[0]


def test_the_worker_ends_with_its_template() -> None:
    ours = ChatTemplate("ok", "", "")
    ours.render(HI)
    assert ours._worker is not None
    process = ours._worker._process
    assert process.poll() is None
    del ours
    gc.collect()
    assert process.poll() is not None


def test_a_killed_worker_is_replaced() -> None:
    ours = ChatTemplate("ok", "", "")
    ours.render(HI)
    assert ours._worker is not None
    ours._worker._process.kill()
    ours._worker._process.wait()
    assert ours.render(HI) == "ok"


def test_a_worker_that_dies_of_a_question_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = chat._Worker._exchange
    asked: list[bytes] = []

    def dying(worker: chat._Worker, request: bytes) -> dict[str, str] | None:
        if b"deadly" not in request:
            return exchange(worker, request)
        asked.append(request)
        worker._process.kill()
        return exchange(worker, request)

    monkeypatch.setattr(chat._Worker, "_exchange", dying)
    ours = ChatTemplate("{{ messages[0].content }}", "", "")
    with pytest.raises(UnsupportedModel, match="ended the process"):
        ours.render([{"role": "user", "content": "deadly"}])
    assert len(asked) == 2
    assert ours.render(HI) == HI[0]["content"]


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_the_worker_is_not_in_the_group_that_ctrl_c_reaches() -> None:
    ours = ChatTemplate("ok", "", "")
    ours.render(HI)
    assert ours._worker is not None
    assert os.getpgid(ours._worker._process.pid) != os.getpgid(0)


def test_threads_take_turns() -> None:
    ours = ChatTemplate("{{ messages[0].content }}", "", "")
    wrong: list[object] = []

    def work(text: str) -> None:
        try:
            for _ in range(50):
                if ours.render([{"role": "user", "content": text}]) != text:
                    wrong.append(text)
        except HastenError as problem:
            wrong.append(problem)

    threads = [threading.Thread(target=work, args=(f"{at}" * 1000,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
