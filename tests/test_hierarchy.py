"""The hierarchy drafter: its databases (against brute force, and against hostile files), its scores, and ``hasten draft build``."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from math import gcd
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_fakes import CommandLine
from hasten import LLM
from hasten.cli.main import run
from hasten.core.errors import ConfigError, CorruptModel, VocabularyMismatch
from hasten.core.types import ROOT, DraftTree, SamplingParams, Sequence
from hasten.draft import kept, ngrams
from hasten.draft.base import DraftBudget
from hasten.draft.hierarchy import HierarchyDrafter
from hasten.draft.matches import LONGEST_MATCH, weights
from hasten.draft.ngrams import DATA_OFFSET, DEPTH, HEADER, MOST_PLACES, NgramDatabase, build
from hasten.draft.suffix import SuffixDrafter
from hasten.train.openings import OPENINGS
from hasten.train.own_questions import FEWEST_CHARACTERS, FREE, own_questions
from serving import write_model

BUDGET = DraftBudget(nodes=24, depth=12)
TABLE = weights(1.0, 2.0, MOST_PLACES)


def sequence_of(tokens: list[int]) -> Sequence:
    return Sequence(0, "r", SamplingParams(), 0, list(tokens), len(tokens), length_limit=1 << 20)


def tree_for(drafter: HierarchyDrafter | SuffixDrafter, tokens: list[int], budget: DraftBudget = BUDGET) -> DraftTree:
    sequence = sequence_of(tokens)
    drafter.begin(sequence)
    tree = drafter.propose([sequence], [budget])[0]
    drafter.end(sequence)
    return tree


def some_texts(seed: int, symbols: int = 4, count: int = 6, longest: int = 50) -> list[list[int]]:
    randomness = random.Random(seed)
    return [[randomness.randrange(symbols) for _ in range(randomness.randrange(1, longest))] for _ in range(count)] + [[1, 2]]


def agreement(text: list[int], at: int, end: list[int]) -> int:
    length = 0
    while length < min(LONGEST_MATCH, at, len(end)) and text[at - 1 - length] == end[-1 - length]:
        length += 1
    return length


# What is found


@pytest.mark.parametrize("seed", range(40))
def test_matches_are_sound_and_the_longest_are_among_them(tmp_path: Path, seed: int) -> None:
    randomness = random.Random(1000 + seed)
    symbols = randomness.choice([2, 4, 40])
    texts = some_texts(seed, symbols)
    build(tmp_path / "db", texts, "v")
    database = NgramDatabase(tmp_path / "db", "v")
    for _ in range(30):
        source = randomness.choice(texts)
        end = [randomness.randrange(symbols) for _ in range(randomness.randrange(6))] + source[
            : randomness.randrange(len(source) + 1)
        ]
        everywhere = sorted(
            ((length, text[at]) for text in texts for at in range(1, len(text)) if (length := agreement(text, at, end))),
            reverse=True,
        )
        found = [(length, text[at]) for text, at, length, _ in database.matches(end, TABLE)]
        assert len({at for _, at, _, _ in database.matches(end, TABLE)}) == len(found) == min(len(everywhere), MOST_PLACES)
        assert [length for length, _ in found] == sorted((length for length, _ in found), reverse=True)
        if len(everywhere) <= MOST_PLACES:
            assert sorted(found, reverse=True) == everywhere
        else:
            assert set(found) <= set(everywhere)
            # Beyond DEPTH tokens places are not told apart by their order.
            assert min(DEPTH, found[0][0]) == min(DEPTH, everywhere[0][0])


def test_followers_are_as_frequent_as_in_the_text(tmp_path: Path) -> None:
    texts = [[7, 8, 1]] * 300 + [[7, 8, 2]] * 100 + [[9, 8, 3]] * 500
    build(tmp_path / "db", texts, "v")
    found = [text[at] for text, at, _, _ in NgramDatabase(tmp_path / "db", "v").matches([7, 8], TABLE)]
    assert found.count(3) == 0
    assert abs(found.count(1) / len(found) - 0.75) < 0.05


def test_no_match_goes_over_the_end_of_a_text(tmp_path: Path) -> None:
    build(tmp_path / "db", [[1, 2, 3], [4, 5, 6]], "v")
    tree = tree_for(HierarchyDrafter(model=tmp_path / "db", vocabulary="v"), [1, 2])
    assert tree.tokens == [3]
    assert not len(tree_for(HierarchyDrafter(model=tmp_path / "db", vocabulary="v"), [2, 3]))
    assert not len(tree_for(HierarchyDrafter(model=tmp_path / "db", vocabulary="v"), [3, 4, 9]))


def test_without_databases_it_is_the_suffix_drafter() -> None:
    for seed in range(10):
        tokens = some_texts(seed, longest=200)[0] * 3
        mine, theirs = tree_for(HierarchyDrafter(), tokens), tree_for(SuffixDrafter(), tokens)
        common = {tuple(tree_path(theirs, node)) for node in range(len(theirs))} & {
            tuple(tree_path(mine, node)) for node in range(len(mine))
        }
        assert len(common) >= 0.7 * len(theirs)


def tree_path(tree: DraftTree, node: int) -> list[int]:
    return [tree.tokens[at] for at in tree.path(node)]


def test_sources_are_merged_and_scored_together(tmp_path: Path) -> None:
    """What all sources say scores higher than what one says; equal guesses are one node."""
    build(tmp_path / "model", [[5, 6, 7, 1], [5, 6, 7, 2]], "v")
    build(tmp_path / "statistics", [[5, 6, 7, 1], [5, 6, 7, 3]], "v")
    drafter = HierarchyDrafter(tmp_path / "model", tmp_path / "statistics", "v")
    tree = tree_for(drafter, [5, 6, 7, 1, 0, 9, 5, 6, 7])
    first = {tree.tokens[node]: tree.scores[node] for node, parent in enumerate(tree.parents) if parent == ROOT}
    assert first[1] > first[2] > first[3] > 0
    assert len(set(zip(tree.parents, tree.tokens, strict=True))) == len(tree)


def test_a_slower_database_is_asked_only_where_doubt_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "db", [[5, 6, 7, 1]], "v")
    drafter = HierarchyDrafter(model=tmp_path / "db", vocabulary="v")
    asked: list[int] = []
    monkeypatch.setattr(NgramDatabase, "matches", lambda *arguments: asked.append(1) or [])
    tree_for(drafter, list(range(40)) * 2)
    assert not asked
    tree_for(drafter, [5, 6, 7])
    assert asked


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_siblings_never_sum_to_one(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("db")
    token = st.integers(0, 5)
    for name in ("model", "statistics"):
        build(folder / name, [[0, 1], *data.draw(st.lists(st.lists(token, min_size=1, max_size=40), max_size=6))], "v")
    drafter = HierarchyDrafter(folder / "model", folder / "statistics", "v")
    tree = tree_for(drafter, data.draw(st.lists(token, min_size=1, max_size=60)))
    sums: dict[int, float] = {}
    for parent, score in zip(tree.parents, tree.scores, strict=True):
        sums[parent] = sums.get(parent, 0.0) + score
    assert all(total < 1.0 for total in sums.values())


# Files


def test_a_build_keeps_everything_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "db"
    texts = some_texts(3)
    assert build(path, texts, "v") == sum(len(text) + 1 for text in texts)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["db"]
    assert path.read_bytes() == (build(path, [np.array(text, dtype=np.int32) for text in texts], "v"), path.read_bytes())[1]


def test_too_much_text_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "MOST_TOKENS", 100)
    assert build(tmp_path / "db", [list(range(50)), list(range(500)), [1, 2]], "v") == 100 - DEPTH
    assert NgramDatabase(tmp_path / "db", "v").size == 100 - DEPTH


@pytest.mark.parametrize("texts", [[], [[]], [[1]], [[1], [2]], [[1, -2, 3]]])
def test_nothing_to_build(tmp_path: Path, texts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"two tokens|negative"):
        build(tmp_path / "db", texts, "v")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    build(path, [[1, 2, 3]], "v")
    before = path.read_bytes()

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        build(path, [[4, 5, 6]], "v")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["db"]


def rewritten(path: Path, **changes: int) -> bytes:
    """The file with some numbers of its body replaced and the checksum made right again."""
    import zlib

    whole = bytearray(path.read_bytes())
    fields = list(HEADER.unpack_from(whole))
    body = np.frombuffer(bytes(whole[DATA_OFFSET:]), dtype="<i4").copy()
    if "token" in changes:
        body[changes["at"]] = changes["token"]
    if "place" in changes:
        body[fields[3] + changes["at"]] = changes["place"]
    fields[5] = 0
    fields[5] = zlib.crc32(HEADER.pack(*fields).ljust(DATA_OFFSET, b"\0") + body.tobytes())
    return HEADER.pack(*fields).ljust(DATA_OFFSET, b"\0") + body.tobytes()


HOSTILE = ["empty", "short", "truncated", "longer", "magic", "version", "depth", "count", "huge", "checksum", "vocabulary",
           "padding", "token", "margin", "place low", "place high", "no boundary"]  # fmt: skip


def hostile(path: Path, kind: str) -> bytes:
    whole = bytearray(path.read_bytes())
    offsets = {"magic": 0, "version": 8, "depth": 12, "count": 16, "checksum": 32, "vocabulary": 36, "padding": 120}
    if kind in offsets:
        whole[offsets[kind]] ^= 1
        return bytes(whole)
    size = HEADER.unpack_from(whole)[3]
    return {
        "empty": lambda: b"",
        "short": lambda: bytes(whole[:100]),
        "truncated": lambda: bytes(whole[:-4]),
        "longer": lambda: bytes(whole) + b"\0" * 4,
        "huge": lambda: bytes(whole[:16]) + b"\xff" * 16 + bytes(whole[32:]),
        "token": lambda: rewritten(path, at=DEPTH + 2, token=-7),
        "margin": lambda: rewritten(path, at=3, token=5),
        "place low": lambda: rewritten(path, at=0, place=-3),
        "place high": lambda: rewritten(path, at=0, place=size),
        "no boundary": lambda: rewritten(path, at=size - 1, token=4),
    }[kind]()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    path = tmp_path / "db"
    build(path, some_texts(1), "v")
    content = hostile(path, kind)
    path.write_bytes(content)
    with pytest.raises(CorruptModel, match="hasten draft build"):
        NgramDatabase(path, "v")
    drafter = HierarchyDrafter(statistics=path, vocabulary="v")
    assert (tmp_path / "db.damaged-1").read_bytes() == content
    assert not path.exists()
    assert len(caplog.records) == 1
    assert "db.damaged-1" in caplog.text
    assert len(tree_for(drafter, [1, 2, 3] * 5))


@pytest.mark.parametrize("seed", range(60))
def test_no_file_that_passes_leads_a_look_up_astray(tmp_path: Path, seed: int) -> None:
    """Numbers replaced at random under a right checksum: refused, or harmless."""
    randomness = random.Random(seed)
    path = tmp_path / "db"
    build(path, some_texts(seed), "v")
    size = NgramDatabase(path, "v").size + DEPTH
    for _ in range(5):
        what = randomness.choice(["token", "place"])
        value = randomness.choice([-1, 0, 1, 3, DEPTH + 1, size - 1, 2**31 - 1, randomness.randrange(-5, size + 5)])
        path.write_bytes(rewritten(path, at=randomness.randrange(size // 2), **{what: value}))
    try:
        database = NgramDatabase(path, "v")
    except CorruptModel:
        return
    for _ in range(50):
        end = [randomness.randrange(4) for _ in range(randomness.randrange(30))]
        assert len(database.matches(end, TABLE)) <= MOST_PLACES


def test_files_that_the_user_names_must_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path / "db", [[1, 2]], "one")
    with pytest.raises(VocabularyMismatch, match="another vocabulary"):
        NgramDatabase(tmp_path / "db", "two")
    with pytest.raises(ConfigError, match="another vocabulary"):
        HierarchyDrafter(model=str(tmp_path / "db"), vocabulary="two")
    with pytest.raises(ConfigError, match="no draft database"):
        HierarchyDrafter(model=tmp_path / "absent", vocabulary="two")
    HierarchyDrafter(model=tmp_path, vocabulary="v")
    assert len(caplog.records) == 1
    assert {file.name for file in tmp_path.iterdir()} == {"db"}


def test_paths_are_kept_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    first, common = kept.database_paths("v", "model/../one")
    second, same = kept.database_paths("v", "two")
    assert common == same
    assert len({first, second, common, *kept.database_paths("w", "two")}) == 5
    assert first.parent == tmp_path / "drafts"
    assert kept.arguments_of("hierarchy", "two", "v") == {"model": None, "statistics": None, "vocabulary": "v"}
    build(same, [[1, 2]], "v")
    assert kept.arguments_of("hierarchy", "two", "v")["statistics"] == same
    assert kept.arguments_of("memory", "two", "v") == {"path": tmp_path / "drafts" / "memory.sqlite", "vocabulary": "v"}
    assert kept.arguments_of("suffix", "two", "v") == {}


def test_neither_drafter_imports_torch() -> None:
    program = "import sys, hasten.draft.hierarchy, hasten.draft.memory, hasten.draft.kept; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# hasten draft build


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    line = CommandLine(monkeypatch, capsys, tmp_path)
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    tokenizer = SimpleNamespace(vocabulary_fingerprint="v", encode=lambda text, add_bos: [ord(letter) for letter in text])
    monkeypatch.setattr("hasten.model.tokenizer.load_tokenizer", lambda path: tokenizer)
    monkeypatch.setattr("hasten.model.catalogue.resolve", lambda name, fetch, progress: SimpleNamespace(name=name, path=tmp_path))
    return line


def test_build_makes_both_databases(command_line: CommandLine, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Why {number}?"}) + "\n" for number in range(3)))
    (tmp_path / "a.txt").write_text("to be or not to be", encoding="utf-8")
    (tmp_path / "b.txt").write_text("that is the question\n" * 20_000, encoding="utf-8")
    texts = ["--text", str(tmp_path / "a.txt"), "--text", str(tmp_path / "b.txt")]
    done = command_line("draft", "build", "-m", "some-model", "--prompts", str(prompts), *texts, "--max-tokens", "6")
    assert done.status == 0, done.err
    model, statistics = kept.database_paths("v", "some-model")
    assert done.out == f"model database: 21 tokens, {model}\nstatistics database: 420,020 tokens, {statistics}\n"
    assert command_line.made.params == [SamplingParams(max_tokens=6)] * 3
    assert command_line.made.closed
    tree = tree_for(HierarchyDrafter(statistics=statistics, vocabulary="v"), [ord(letter) for letter in "the ques"])
    assert tree.tokens[0] == ord("t")
    the, sky, verb = (command_line.made.vocabulary.index(word) for word in ("The", " sky", " is"))
    assert tree_for(HierarchyDrafter(model=model, vocabulary="v"), [the, sky]).tokens[0] == verb


def test_build_from_text_loads_no_model(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be", encoding="utf-8")
    assert command_line("draft", "build", "--text", str(tmp_path / "a.txt")).status == 0
    assert not command_line.llm.made


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read"), (b"", "give more text."), (b"x", "give more text."), (b"\xff\xfe\xfa", "not UTF-8")],
)
def test_build_refuses_what_it_cannot_use(command_line: CommandLine, tmp_path: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    done = command_line("draft", "build", "--text", str(tmp_path / "a.txt"))
    assert done.status == 1
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_answers_too_short_for_a_database_want_more_prompts(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n', encoding="utf-8")
    command_line.llm.reply = "."
    done = command_line("draft", "build", "--prompts", str(tmp_path / "p.jsonl"))
    assert done.status == 1
    assert "give more prompts." in done.err


def test_build_needs_something_to_build_from(command_line: CommandLine) -> None:
    done = command_line("draft", "build", "--questions", "0")
    assert done.status == 2
    assert "--prompts" in done.err
    assert not command_line.llm.made


def test_build_asks_the_model_itself_where_no_file_is_given(command_line: CommandLine) -> None:
    asked: list[int] = []

    def questions(llm: object, count: int, progress: object) -> list[list[int]]:
        asked.append(count)
        return [command_line.made.render_chat([{"role": "user", "content": f"Why {number}?"}]) for number in range(count)]

    command_line.monkeypatch.setattr("hasten.train.own_questions.own_questions", questions)
    done = command_line("draft", "build", "-m", "some-model", "--questions", "4", "--max-tokens", "5")
    assert done.status == 0, done.err
    assert done.out == f"model database: 24 tokens, {kept.database_paths('v', 'some-model')[0]}\n"
    assert command_line.made.asked == [f"<user>Why {number}?" for number in range(4)]
    assert command_line.made.params == [SamplingParams(max_tokens=5)] * 4
    command_line.llm.made.clear()
    assert command_line("draft", "build", "-m", "some-model").status == 0
    assert asked == [4, 1000]


def test_build_asks_beside_prompts_only_when_told(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Why not?"}\n', encoding="utf-8")
    command_line.monkeypatch.setattr("hasten.train.own_questions.own_questions", lambda llm, count, progress: [[0]] * count)
    assert command_line("draft", "build", "--prompts", str(tmp_path / "p.jsonl")).status == 0
    assert len(command_line.made.asked) == 1
    command_line.llm.made.clear()
    assert command_line("draft", "build", "--prompts", str(tmp_path / "p.jsonl"), "--questions", "2").status == 0
    assert len(command_line.made.asked) == 3


def test_auto_takes_the_database_once_it_is_built(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    params = SamplingParams(max_tokens=24)
    with LLM(str(tiny_model), cache_tokens=4096) as llm:
        assert [drafter.name for drafter in llm.engine.drafting.drafters] == ["prediction", "suffix", "recycling"]
        expected = llm.generate("Why is that so?", params)[0].tokens
    assert run(["draft", "build", "-m", str(tiny_model), "--questions", "3", "--max-tokens", "16", "--cache-tokens", "4096"]) == 0
    assert "model database" in capsys.readouterr().out
    with LLM(str(tiny_model), cache_tokens=4096) as llm:
        assert [drafter.name for drafter in llm.engine.drafting.drafters] == ["prediction", "hierarchy", "recycling"]
        assert llm.generate("Why is that so?", params)[0].tokens == expected
    with LLM(str(tiny_model), cache_tokens=4096, draft="auto+suffix") as llm:
        names = [drafter.name for drafter in llm.engine.drafting.drafters]
        assert names == ["prediction", "hierarchy", "recycling", "suffix"]


# what a model asks itself


def test_own_questions_fill_the_place_of_the_users_words(tiny_model: Path) -> None:
    with LLM(str(tiny_model), draft="none", cache_tokens=8192) as llm:
        done: list[int] = []
        prompts = own_questions(llm, 8, lambda label, count, total: done.append(count))
        assert done == list(range(1, 9))
        assert 1 < len(prompts) <= 8
        assert len({tuple(prompt) for prompt in prompts}) == len(prompts)
        before, after = llm.decode(llm.render_chat([{"role": "user", "content": "@"}])).split("@")
        for prompt in prompts:
            text = llm.decode(prompt)
            assert text.startswith(before)
            assert text.endswith(after)
            assert len(text) >= len(before) + FEWEST_CHARACTERS + len(after)
        assert own_questions(llm, 8) == prompts


def test_most_questions_go_on_from_the_first_words_of_tasks(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.train.own_questions.OPENINGS", ("What is a", "Say:"))
    with LLM(str(tiny_model), draft="none", cache_tokens=8192) as llm:
        before = llm.decode(llm.render_chat([{"role": "user", "content": "@"}])).split("@")[0]
        asked = [llm.decode(prompt).removeprefix(before) for prompt in own_questions(llm, 10)]
    assert len(asked) == 10
    openings = [next((opening for opening in ("What is a", "Say:") if text.startswith(opening)), None) for text in asked]
    assert openings == [None, "Say:", "What is a", "Say:", "What is a", None, "What is a", "Say:", "What is a", "Say:"]


def test_first_words_are_all_used_and_can_be_gone_on_from() -> None:
    assert len(set(OPENINGS)) == len(OPENINGS)
    assert gcd(len(OPENINGS), FREE) == 1  # or some would never be asked
    assert all(opening == opening.rstrip(" ") for opening in OPENINGS)  # tokens hold the space before a word


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }}{% endfor %}"])
def test_a_model_without_a_place_for_a_user_begins_texts_instead(template: str | None, tmp_path: Path) -> None:
    with LLM(str(write_model(tmp_path / "m.gguf", template=template)), draft="none", cache_tokens=8192) as llm:
        prompts = own_questions(llm, 5)
        assert 1 < len(prompts) <= 5
        start = llm.encode("\n")
        assert all(prompt[: len(start)] == start and len(prompt) > len(start) for prompt in prompts)


def test_build_says_when_the_disk_refuses(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be", encoding="utf-8")
    (tmp_path / "home").write_text("in the way")
    done = command_line("draft", "build", "--text", str(tmp_path / "a.txt"))
    assert done.status == 1
    assert "cannot be written" in done.err
