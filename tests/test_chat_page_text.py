"""How the page draws text: whole and in pieces, hostile and huge; and how it reads a stream. The modules run in a real browser."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from chromium import Visit, visit

pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")

from fake_chat_server import FakeChat, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Draws a text that arrives in the given pieces; gives what is on the screen as nested [tag, …] with runs of [text, owner].
DRAW = """async ({pieces, steps, formatted}) => {
    const { Tokens } = await import('/tokens.js');
    const { Rendering } = await import('/rendering.js');
    const tokens = new Tokens();
    const host = document.createElement('div');
    const rendering = new Rendering(host, tokens, formatted);
    let at = 0;
    for (const step of steps) {
        for (; at < step; at += 1) tokens.append(pieces[at], ['abcdefg'[at % 7]], [pieces[at]]);
        rendering.update(at === pieces.length);
    }
    const tree = (node) => {
        const out = [];
        for (const child of node.childNodes) {
            const run = child.nodeType === 3 ? [child.data, ''] : child.matches('.token')
                ? [child.textContent, child.dataset.by] : null;
            if (run === null) out.push({ tag: child.localName,
                hidden: child.hidden, start: child.getAttribute('start'), inner: tree(child) });
            else if (out.length > 0 && Array.isArray(out.at(-1)) && out.at(-1)[1] === run[1]) out.at(-1)[0] += run[0];
            else out.push(run);
        }
        return out;
    };
    return tree(host);
}"""


@pytest.fixture(scope="module")
def page_visit(browser: Browser) -> Iterator[Visit]:
    with running(FakeChat()) as chat, visit(browser, chat.address) as visited:
        visited.open()
        yield visited


def draw(visited: Visit, pieces: list[str], steps: list[int] | None = None, formatted: bool = True) -> list[Any]:
    found: list[Any] = visited.page.evaluate(DRAW, {"pieces": pieces, "steps": steps or [len(pieces)], "formatted": formatted})
    return found


def outline(tree: list[Any]) -> str:
    """Tags and text without owners: <p>one <strong>two</strong></p>."""
    parts = []
    for node in tree:
        if isinstance(node, list):
            parts.append(node[0])
        elif node["tag"] not in ("button", "svg", "use") and not node["hidden"]:
            start = f" start={node['start']}" if node["start"] else ""
            parts.append(f"<{node['tag']}{start}>{outline(node['inner'])}</{node['tag']}>")
    return "".join(parts)


EXAMPLES = {
    "one **two** *three* `four`": "<p>one <strong>two</strong> <em>three</em> <code>four</code></p>",
    "***both*** and __bold__ _it_": "<p><strong><em>both</em></strong> and <strong>bold</strong> <em>it</em></p>",
    "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
    "a **not closed and `open": "<p>a **not closed and `open</p>",
    r"\*not\* \`code\` C:\dir": "<p>*not* `code` C:\\dir</p>",
    "`` a `tick` ``": "<p><code>a `tick`</code></p>",
    "`**not bold**`": "<p><code>**not bold**</code></p>",
    "**bold `code` *it***": "<p><strong>bold <code>code</code> <em>it</em></strong></p>",
    "one\n\ntwo\nthree": "<p>one\n</p><p>two\nthree</p>",
    "# A\n## B\ntext": "<h3>A</h3><h3>B</h3><p>text</p>",
    "#no heading": "<p>#no heading</p>",
    "- a\n- b\n  - c\n- d": "<ul><li><p>a\n</p></li><li><p>b\n</p><ul><li><p>c\n</p></li></ul></li><li><p>d</p></li></ul>",
    "3. a\n4. b\n\ntext": "<ol start=3><li><p>a\n</p></li><li><p>b\n</p></li></ol><p>text</p>",
    "1. a\n\n   ```sh\n   ls\n   ```\n2. b": "<ol><li><p>a\n</p><div><div><span>sh</span></div><pre><code>ls\n</code></pre></div></li><li><p>b</p></li></ol>",  # noqa: E501
    "> said\n> twice\n\nafter": "<blockquote><p>said\ntwice\n</p></blockquote><p>after</p>",
    "a\n\n---\nb": "<p>a\n</p><hr></hr><p>b</p>",
    "```py\nx = '**'\n\n# no\n```\nafter": "<div><div><span>py</span></div><pre><code>x = '**'\n\n# no\n</code></pre></div><p>after</p>",  # noqa: E501
    "~~~\n```\n~~~": "<div><div><span>text</span></div><pre><code>```\n</code></pre></div>",
    "```\nopen": "<div><div><span>text</span></div><pre><code>open</code></pre></div>",
    "| a | b |\n|---|:-:|\n| 1 | **2** |": (
        "<div><table><tbody><tr><th>a</th><th>b</th></tr><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table></div>"
    ),
    "|x| < 3 holds": "<p>|x| < 3 holds</p>",
    "[link](http://x) ![i](y) <b>html</b> &amp;": "<p>[link](<a>http://x</a>) ![i](y) <b>html</b> &amp;</p>",
    r"so \(a_1 * b_2 * \frac{x}{y}\) is" + "\n": "<p>so <span>\\(a_1 * b_2 * \\frac{x}{y}\\)</span> is\n</p>",
    "\\[\n x_1 = 2\n- y_1 \\\\\n\\]\nso": "<p><span>\\[\n x_1 = 2\n- y_1 \\\\\n\\]</span>\nso</p>",
    "$$a*b*c$$ and 5$ and $x": "<p><span>$$a*b*c$$</span> and 5$ and $x</p>",
    r"\(open *it*": "<p>(open <em>it</em></p>",
    "~~old~~ new ~5~ ~~~x": "<p><s>old</s> new ~5~ ~~~x</p>",
    "- [ ] one\n- [x] two\n- [no]": (
        "<ul><li><span>☐</span><p>one\n</p></li><li><span>☑</span><p>two\n</p></li><li><p>[no]</p></li></ul>"
    ),
    "a | b\n--- | ---\n1 | 2\n\nc | d": (
        "<div><table><tbody><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></tbody></table></div><p>c | d</p>"
    ),
    "so:\na | b\n:-- | --:\nx": "<p>so:\n</p><div><table><tbody><tr><th>a</th><th>b</th></tr></tbody></table></div><p>x</p>",
    "a | b\nc | d": "<p>a | b\nc | d</p>",
    "| a |\n\n| b |": (
        "<div><table><tbody><tr><th>a</th></tr></tbody></table></div><div><table><tbody><tr><th>b</th></tr></tbody></table></div>"
    ),
    "at https://a.example/b_c_d*e*f?g=(h)&i#j, yes": "<p>at <a>https://a.example/b_c_d*e*f?g=(h)&i#j</a>, yes</p>",
    "(http://a.example/b_(c)). **https://a.example**": "<p>(<a>http://a.example/b_(c)</a>). <strong><a>https://a.example</a></strong></p>",
    "`https://a.example` xhttps://a.example ftp://a.example": "<p><code>https://a.example</code> xhttps://a.example ftp://a.example</p>",
    "https://bank.example@evil.example https://user:word@a.example": (
        "<p>https://bank.example@evil.example https://user:word@a.example</p>"
    ),
    "http://localhost:8000/ https://a.example: https:// http://99.99.99.999": (
        "<p><a>http://localhost:8000/</a> <a>https://a.example</a>: https:// http://99.99.99.999</p>"
    ),
    "看https://a.example。https://a.exampleを見て https://a.example/東京 https://münchen.example": (
        "<p>看<a>https://a.example</a>。<a>https://a.example</a>を見て <a>https://a.example/東京</a> https://münchen.example</p>"
    ),
    "| https://a.example |\n|---|\n| x |": (
        "<div><table><tbody><tr><th><a>https://a.example</a></th></tr><tr><td>x</td></tr></tbody></table></div>"
    ),
    "": "",
    "\n\n \n": "",
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_markdown(text: str, page_visit: Visit) -> None:
    assert outline(draw(page_visit, list(text))) == EXAMPLES[text]
    assert outline(draw(page_visit, list(text), [*range(1, len(text) + 1)])) == EXAMPLES[text], "letter by letter"


BITS = (
    "word", " ", "  ", "\n", "\n\n", "*", "**",
    "***", "_", "__", "`", "``", "```", "```py\n", "\n```\n", "~~~", "\\", "- ", "\n- ", "\n  - ",
    "1. ", "\n2) ", "# ", "\n### ", "> ", "\n> ", "|", "| a | b |\n",
    "|---|\n", "---", "\n***\n", "é", "😀", "\u202e", "\t", "    ", "a_b", "x*y",
    "https://", "http", "s://", "://a.example", "a.example/b", "(", ")", ".", "@",
    "~~", "$$", "\\(", "\\)", "\\[", "\\]", "- [ ] ", "\na | b\n", "--- | :-:\n", "שלום",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_a_text_drawn_as_it_grows_ends_as_the_text_drawn_at_once(seed: int, page_visit: Visit) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        pieces = rng.choices(BITS, k=rng.randint(1, 60))
        steps = sorted(rng.sample(range(1, len(pieces) + 1), k=rng.randint(1, len(pieces))))
        if steps[-1] != len(pieces):
            steps.append(len(pieces))
        grown, whole = draw(page_visit, pieces, steps), draw(page_visit, pieces)
        assert grown == whole, json.dumps(["".join(pieces[a:b]) for a, b in zip([0, *steps], steps, strict=False)])


@pytest.mark.parametrize("seed", range(4))
def test_no_character_is_made_up_moved_or_given_to_another_owner(seed: int, page_visit: Visit) -> None:
    rng = random.Random(100 + seed)
    for _ in range(25):
        pieces = rng.choices(BITS, k=rng.randint(1, 60))
        owned = [(character, "abcdefg"[at % 7]) for at, piece in enumerate(pieces) for character in piece]
        shown = flat(draw(page_visit, pieces))
        rest = iter(owned)
        assert all(one in rest for one in shown), "".join(pieces)
        if not {"```", "```py\n", "~~~"} & set(pieces):  # what stands behind a fence is its language, a label
            assert [one for one in shown if one[0].isalpha()] == [one for one in owned if one[0].isalpha()], "".join(pieces)
        assert flat(draw(page_visit, pieces, formatted=False)) == owned


def flat(tree: list[Any]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for node in tree:
        if isinstance(node, list):
            out += [(character, node[1]) for character in node[0]]
        elif node["tag"] != "button":
            out += [each for each in flat(node["inner"]) if each[1] or node["tag"] not in ("span", "div")]
    return out


# Markers that a careless parser looks at again and again, or nests without end.
LONG = {
    "one line": "word " * 8_000,
    "open stars": "*a " * 12_000,
    "stars": "*" * 40_000,
    "stars and then not": "*" * 20_000 + "x",
    "nested marks": "**a *b __c _d " * 3_000,
    "ticks of all lengths": " ".join("`" * length for length in range(1, 280)),
    "fence of tildes": "~" * 40_000 + "`",
    "quotes": "> " * 20_000,
    "bars": "|" * 40_000,
    "bars with dashes": "|" + "-" * 40_000,
    "list": "- item\n" * 4_000,
    "spaces": " " * 40_000 + "x",
    "rule that is none": "- " * 20_000 + "x",
    "code": "```\n" + "line of code\n" * 3_000,
    "backslashes": "\\" * 40_000,
    "struck": "~~" * 20_000,
    "open maths": "\\(a " * 12_000,
    "dollars": "$" * 40_000,
    "bare bars": "a | " * 10_000 + "\n" + "--- | " * 10_000,
    "addresses": "https://" * 5_000,
    "one long address": "https://a.example/" + "." * 40_000 + "x",
    "brackets": "[" * 20_000 + "](" * 10_000,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", LONG)
def test_long_and_crooked_texts_are_drawn_in_the_end(kind: str, page_visit: Visit) -> None:
    pieces = [LONG[kind][at : at + 100] for at in range(0, len(LONG[kind]), 100)]
    assert draw(page_visit, pieces, [*range(1, len(pieces), 20), len(pieces)])


def test_marks_of_direction_are_kept_inside_their_token(page_visit: Visit) -> None:
    classes = page_visit.page.evaluate(
        """async () => {
            const { Tokens } = await import('/tokens.js');
            const tokens = Object.assign(new Tokens(), { legend: { m: 'model', s: 'suffix' } });
            tokens.append('a\\u202eb cd', ['m', 's'], ['a\\u202e', 'b cd']);
            tokens.append('\\u2066x', [], []);
            const host = document.createElement('p');
            tokens.paint(host, 0, tokens.text.length);
            document.body.append(host);
            const found = [...host.children].map((each) => [each.className, getComputedStyle(each).unicodeBidi]);
            host.remove();
            return found;
        }"""
    )
    assert classes == [["token mark-0 direction", "isolate"], ["token mark-1", "normal"], ["token direction", "isolate"]]


def test_columns_stand_as_the_divider_says_and_right_to_left_text_begins_on_its_side(page_visit: Visit) -> None:
    found = page_visit.page.evaluate(
        """async () => {
            const { Tokens } = await import('/tokens.js');
            const { Rendering } = await import('/rendering.js');
            const drawn = (text) => {
                const [tokens, host] = [new Tokens(), document.createElement('div')];
                tokens.append(text, [], []);
                new Rendering(host, tokens, true).update(true);
                return host;
            };
            const table = drawn('| a | b | c |\\n|:--|:-:|--:|\\n| 1 | 2 | 3 |');
            const mixed = drawn('- שלום\\n- two\\n\\n> \u0645\u0631\u062d\u0628\u0627\\n\\n1. one\\n\\n| א | b |\\n|---|---|\\n');
            return [
                [...table.querySelectorAll('th, td')].map((cell) => cell.className),
                [...mixed.querySelectorAll('ul, blockquote, ol, .table')].map((box) => box.dir),
            ];
        }"""
    )
    assert found == [["align-left", "align-center", "align-right"] * 2, ["rtl", "rtl", "ltr", "rtl"]]


# The stream

READ = """async ({parts}) => {
    const { eventData } = await import('/sse.js');
    const body = new ReadableStream({ start(controller) {
        for (const part of parts) controller.enqueue(Uint8Array.from(part));
        controller.close();
    } });
    const events = [];
    for await (const data of eventData(body)) events.push(data);
    return events;
}"""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("seed", range(6))
def test_events_are_whole_however_the_network_cuts_them(seed: int, end: str, page_visit: Visit) -> None:
    rng = random.Random(seed)
    events = ['{"a":"é😀"}', "two\nlines", "", "[DONE]", "日本語 שלום"]
    lines = [": a comment", "event: x", "id: 1"]
    for text in events:
        lines += [f"data: {line}" for line in text.split("\n")] + ["", rng.choice([": still at work", "retry: 5"]), ""]
    stream = (end.join(lines) + end).encode()
    cuts = sorted({0, len(stream), *(rng.randrange(len(stream)) for _ in range(rng.randint(0, 60)))})
    parts = [list(stream[start:stop]) for start, stop in pairwise(cuts)]
    assert page_visit.page.evaluate(READ, {"parts": parts}) == events


def test_bytes_that_are_no_text_become_replacement_characters(page_visit: Visit) -> None:
    stream = b"data: one \xff\xfe two \xe2\x82\n\ndata: three\n\n"
    assert page_visit.page.evaluate(READ, {"parts": [list(stream)]}) == ["one \ufffd\ufffd two \ufffd", "three"]
