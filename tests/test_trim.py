"""A draft model that computes part of the vocabulary: the same logits, the same noise, never another text; and hostile files."""

from __future__ import annotations

import gc
import json
import logging
import random
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hasten.cache.blocks import BlockManager
from hasten.cli.main import run
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, InvalidRequest
from hasten.core.types import Batch, DraftTree, SamplingParams, Segment, Sequence, Verdict
from hasten.draft import shortlist
from hasten.draft.base import DraftBudget
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.shortlist import Shortlists
from hasten.draft.trim import (
    DEFAULT_SIZE,
    FORMAT,
    TrimmedVocabulary,
    choose_trim,
    count_tokens,
    load,
    save,
    trim_head,
    trimmed,
)
from hasten.model.decoder import Decoder
from hasten.model.executor import Executor
from hasten.model.head import DenseRows, TrimmedHead, head_rows
from hasten.model.precision import FP32, FP64, INT8, Precision
from hasten.model.weights import load_decoder
from hasten.native.loader import load as native
from hasten.train import trim as find
from hasten.train.trim import Answer, Tally, replay
from test_exact import SETTINGS, prompt_of
from tiny import CPU, DESCRIPTIONS, VOCABULARY, LetterTokenizer, RandomSource, naive_text, run_all, tiny_engine

KINDS = ("llama", "llama3", "gemma3")  # a head of its own, a tied one, one with softcap
SOME = np.array([0, 3, 4, 17, 30, 31, 55, 60])
HALF = np.arange(0, VOCABULARY, 2)


class Words:
    """A vocabulary of numbered words."""

    vocabulary_fingerprint = "words"

    def __init__(self, size: int, byte_level: bool = True, special: tuple[int, ...] = (), eos: tuple[int, ...] = ()) -> None:
        self.vocabulary_size, self.byte_level = size, byte_level
        self.special_ids, self.eos_token_ids = frozenset(special), eos

    def token_bytes(self, token: int) -> bytes:
        return f"word{token}".encode() if token < self.vocabulary_size - 10 else "aé☃"[token % 3].encode()


def whole_and_part(kind: str, precision: Precision, folder: Path, fixed: np.ndarray) -> tuple[Decoder, Decoder, TrimmedHead]:
    """One model with its whole head and with part of it."""
    source = RandomSource(DESCRIPTIONS[kind])
    converted = folder / "weights" if precision.quantised else None
    whole = load_decoder(source, precision, CPU, converted)
    rows = head_rows(source, whole, converted)
    assert rows is not None
    head = TrimmedHead(rows, fixed)
    return whole, whole.with_head(head), head


def logits_of(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    return Executor(decoder, 8, CPU).forward(Batch([Segment(list(range(8)), 0, tokens)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [INT8, FP32, FP64], ids=lambda precision: precision.name)
def test_logits_are_those_of_the_whole_head(kind: str, precision: Precision, tmp_path: Path) -> None:
    """In int8 with the native kernels bit for bit: the rows are not rounded again, and the sums are exact."""
    rng, tokens = random.Random(kind), prompt_of(30, 3)
    for size in (1, 2, 8, 15, 16, 17, 33, VOCABULARY):
        fixed = np.array(sorted(rng.sample(range(VOCABULARY), size)))
        whole, part, head = whole_and_part(kind, precision, tmp_path, fixed)
        want = logits_of(whole, tokens)
        for count in (0, 1, 5, 20):
            head.hold(np.array(sorted(rng.sample(range(VOCABULARY), count)), np.int64))
            got = logits_of(part, tokens)
            if precision is INT8 and native() is not None:
                assert torch.equal(got, want[:, head.ids])
            else:
                torch.testing.assert_close(got, want[:, head.ids], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "llama3"])
def test_the_whole_head_is_let_go(kind: str, tmp_path: Path) -> None:
    whole, part, _ = whole_and_part(kind, INT8, tmp_path, SOME)
    gone = weakref.ref(whole.weights.head)
    del whole
    gc.collect()
    assert gone() is None
    assert part.weights.head.outputs == len(SOME)


def test_a_tied_dense_head_is_found_in_the_embedding(tmp_path: Path) -> None:
    whole, part, _ = whole_and_part("llama3", FP32, tmp_path, SOME)
    gone = weakref.ref(whole.weights.head)
    del whole
    gc.collect()
    assert gone() is None
    assert part.weights.head.outputs == len(SOME)


def test_int8_weights_that_are_nowhere_cannot_be_trimmed(tmp_path: Path) -> None:
    source = RandomSource(DESCRIPTIONS["llama"])
    decoder = load_decoder(source, INT8, CPU, None)
    assert head_rows(source, decoder, None) is None
    assert head_rows(source, decoder, tmp_path / "none") is None
    (tmp_path / "bad").write_bytes(b"x" * 5000)
    assert head_rows(source, decoder, tmp_path / "bad") is None


# ---- which ids


def test_the_most_counted_are_kept_then_the_lowest() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 7, 50, 99, 100, 5000):
        counts = rng.integers(0, 4, 100) * (rng.random(100) < 0.3)
        found = trimmed(Words(100, special=(98,), eos=(97, 500)), size, counts).ids
        order = sorted(range(100), key=lambda token: (-counts[token], token))
        assert found.tolist() == sorted({*order[:size], 97, 98})
        assert found.dtype == np.int64


def test_letters_of_a_sentencepiece_vocabulary_rank_before_words() -> None:
    words = Words(100, byte_level=False)
    letters = {token for token in range(90, 100) if token % 3 != 2}  # the snowman has three bytes
    assert {*trimmed(words, 20).ids.tolist()} == letters | {*range(20 - len(letters))}
    assert trimmed(Words(100), 20).ids.tolist() == list(range(20))


def test_counting() -> None:
    assert count_tokens([[1, 1, 4], [], [4, 9, -1, 10**9]], 5).tolist() == [0, 2, 0, 0, 2]


def test_the_default_keeps_the_lowest_of_a_large_vocabulary(tmp_path: Path) -> None:
    assert choose_trim("d", Words(2 * DEFAULT_SIZE - 1), tmp_path / "none") is None
    found = choose_trim("d", Words(2 * DEFAULT_SIZE, special=(40000,)), tmp_path / "none")
    assert found is not None
    assert found.ids.tolist() == [*range(DEFAULT_SIZE), 40000]


# ---- the file


def test_a_choice_comes_back(tmp_path: Path) -> None:
    path, words = tmp_path / "deep" / "trim.json", Words(100, special=(3,))
    assert load(path, "draft", words) is None
    save(trimmed(words, 10, counted="a test"), path, "draft", words)
    found = load(path, "draft", words)
    assert found is not None
    assert (found.ids.tolist(), found.counted) == (list(range(10)), "a test")
    assert [entry.name for entry in path.parent.iterdir()] == ["trim.json"]


def test_a_choice_of_everything_is_no_trim(tmp_path: Path) -> None:
    words = Words(3 * DEFAULT_SIZE)
    save(trimmed(words, words.vocabulary_size), tmp_path / "trim.json", "draft", words)
    assert choose_trim("draft", words, tmp_path / "trim.json") is None


def content(**changes: object) -> bytes:
    good = {"format": FORMAT, "draft": "draft", "vocabulary": "words", "counted": "x", "size": 3, "ids": [1, 5, 7]}
    return json.dumps({**good, **changes}).encode()


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "not json": b"{",
    "not utf-8": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "format": content(format="hasten-trim-0"),
    "draft": content(draft="other"),
    "vocabulary": content(vocabulary=None),
    "counted": content(counted=7),
    "no ids": content(ids=[], size=0),
    "size": content(size=4),
    "text ids": content(ids=["1", "5", "7"]),
    "true": content(ids=[True, 5, 7]),
    "fractions": content(ids=[1.0, 5, 7]),
    "nested": content(ids=[[1], [5], [7]]),
    "negative": content(ids=[-1, 5, 7]),
    "beyond": content(ids=[1, 5, 100]),
    "huge": content(ids=[1, 5, 10**400]),
    "repeated": content(ids=[1, 5, 5]),
    "descending": content(ids=[7, 5, 1]),
    "a hidden large one": content(ids=[1, 10**9, 7]),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_set_aside_with_one_warning(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trim.json"
    path.write_bytes(data)
    assert choose_trim("draft", Words(100), path) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not path.exists()
    assert path.with_suffix(".damaged").read_bytes() == data
    assert load(path, "draft", Words(100)) is None
    assert len(caplog.records) == 1


def test_a_file_without_special_ids_gets_them(tmp_path: Path) -> None:
    (tmp_path / "trim.json").write_bytes(content())
    found = load(tmp_path / "trim.json", "draft", Words(100, special=(50,), eos=(2,)))
    assert found is not None
    assert found.ids.tolist() == [1, 2, 5, 7, 50]


def test_a_file_that_is_a_folder_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trim.json").mkdir()
    assert load(tmp_path / "trim.json", "draft", Words(100)) is None
    assert len(caplog.records) == 1


def test_the_head_of_a_draft_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    source, letters = RandomSource(DESCRIPTIONS["llama3"]), LetterTokenizer()
    letters.byte_level = True  # type: ignore[attr-defined]
    decoder = load_decoder(source, FP64, CPU, None)
    assert trim_head(source, decoder, None, letters) is None  # type: ignore[arg-type]
    from hasten.model import storage

    path = storage.trim_path(source.fingerprint, letters.vocabulary_fingerprint)
    save(TrimmedVocabulary(SOME, "a test"), path, source.fingerprint, letters)  # type: ignore[arg-type]
    head = trim_head(source, decoder, None, letters)  # type: ignore[arg-type]
    assert head is not None
    assert head.ids.tolist() == SOME.tolist()


# ---- what a text adds


def shortlists(fixed: np.ndarray = SOME) -> tuple[Shortlists, TrimmedHead, torch.Tensor]:
    weight = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = TrimmedHead(DenseRows(weight), fixed)
    return Shortlists(head, VOCABULARY), head, weight


def test_each_text_sees_the_fixed_ids_and_its_own() -> None:
    rng = random.Random(2)
    lists, head, weight = shortlists()
    own: dict[int, set[int]] = {}
    x = torch.randn(1, 8, dtype=torch.float64)
    for _ in range(300):
        text = rng.randrange(4)
        if text in own and rng.random() < 0.2:
            lists.end(text)
            del own[text]
            continue
        if text not in own:
            lists.begin(text)
            own[text] = set()
        tokens = [rng.randrange(-2, VOCABULARY + 3) for _ in range(rng.randrange(4))]
        lists.note(text, tokens)
        own[text] |= {token for token in tokens if 0 <= token < VOCABULARY}
        lists.prepare()
        row = head(x)[0]
        for other, mine in own.items():
            logits, ids = lists.pick(other, row)
            assert {*ids.tolist()} == {*SOME.tolist()} | mine
            assert len({*ids.tolist()}) == len(ids)
            torch.testing.assert_close(logits, (x @ weight.T)[0][ids])


def test_what_a_text_adds_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "MOST_OWN", 4)
    lists, head, _ = shortlists()
    lists.begin(1)
    lists.note(1, range(5, 12))
    lists.note(1, [8])
    lists.note(1, [20])
    lists.prepare()
    assert {*head.ids.tolist()} - {*SOME.tolist()} == {10, 11, 8, 20}


def test_ended_texts_leave_the_head() -> None:
    lists, head, _ = shortlists()
    lists.begin(1)
    lists.note(1, [5, 6])
    lists.prepare()
    lists.end(1)
    lists.end(1)
    lists.begin(2)
    lists.note(2, [7])
    lists.prepare()
    assert head.ids.tolist() == [*SOME.tolist(), 7]


# ---- the drafter


def trimmed_drafter(fixed: np.ndarray, precision: Precision = FP64, folder: Path = Path(), width: int = 3) -> LanguageModelDrafter:
    _, part, head = whole_and_part("llama", precision, folder, fixed)
    blocks = BlockManager(48, prefix_cache=False)
    return LanguageModelDrafter(Executor(part, 48, CPU).forward, blocks, VOCABULARY, 512, width, head=head)


def whole_drafter() -> LanguageModelDrafter:
    decoder = load_decoder(RandomSource(DESCRIPTIONS["llama"]), FP64, CPU, None)
    return LanguageModelDrafter(Executor(decoder, 48, CPU).forward, BlockManager(48, prefix_cache=False), VOCABULARY, 512)


def text_of(number: int, params: SamplingParams, length: int = 20) -> Sequence:
    tokens = list(prompt_of(length, number))
    return Sequence(number, f"request-{number}", params, number, tokens, length, 400)


def proposals(drafter: LanguageModelDrafter, texts: list[Sequence]) -> list[DraftTree]:
    for text in texts:
        drafter.begin(text)
    return drafter.propose(texts, [DraftBudget(12, 4)] * len(texts))


@pytest.mark.parametrize("name", SETTINGS)
def test_all_ids_draft_as_the_whole_head(name: str) -> None:
    texts = [text_of(number, SETTINGS[name]) for number in range(6)]
    assert proposals(trimmed_drafter(np.arange(VOCABULARY)), texts) == proposals(whole_drafter(), texts)


@pytest.mark.parametrize("name", SETTINGS)
def test_part_of_the_ids_drafts_as_the_whole_head_where_that_stays_within(name: str) -> None:
    """The first level: as far as both have the same past."""
    same = 0
    for number in range(16):
        text = text_of(number, SETTINGS[name], 3)
        known = {*HALF.tolist(), *text.tokens}
        (whole,), (part,) = proposals(whole_drafter(), [text]), proposals(trimmed_drafter(HALF), [text])
        assert {*part.tokens} <= known
        if SETTINGS[name].top_k or SETTINGS[name].top_p < 1.0 or SETTINGS[name].min_p:
            continue
        if whole.tokens[0] in known:
            assert part.tokens[0] == whole.tokens[0]
            same += 1
    assert same > 3 or SETTINGS[name].top_k or SETTINGS[name].top_p < 1.0


def test_a_text_in_a_batch_is_drafted_as_alone() -> None:
    texts = [text_of(number, SamplingParams(temperature=0.8), 5 + number) for number in range(6)]
    together = proposals(trimmed_drafter(SOME), texts)
    alone = [proposals(trimmed_drafter(SOME), [text])[0] for text in texts]
    assert [(tree.tokens, tree.parents) for tree in together] == [(tree.tokens, tree.parents) for tree in alone]


def test_what_the_target_thought_likely_can_be_drafted() -> None:
    drafter, text = trimmed_drafter(SOME), text_of(1, SamplingParams(temperature=0.0), 3)
    (whole,) = proposals(whole_drafter(), [text])
    (before,) = proposals(drafter, [text])
    assert whole.tokens[0] not in before.tokens
    drafter.observe(text, before, Verdict([], [], likeliest=[[whole.tokens[0], 10**9]]))
    assert drafter.propose([text], [DraftBudget(12, 4)])[0].tokens[0] == whole.tokens[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_text_is_that_of_plain_decoding(name: str) -> None:
    prompts = [prompt_of(length, length) for length in (1, 30, 70)]
    engine = tiny_engine("llama", [trimmed_drafter(SOME)])
    done = run_all(engine, [engine.submit(list(prompt), SETTINGS[name]) for prompt in prompts])
    assert done == [naive_text("llama", tuple(prompt), SETTINGS[name]) for prompt in prompts]
    assert not engine.drafting.drafters[0]._shortlists._own  # type: ignore[attr-defined]


# ---- measuring


def constant(seconds: float) -> Callable[[int], float]:
    return lambda rows: seconds


def test_replay_accepts_what_the_target_said() -> None:
    """The draft is the target: every draft of the whole head is right, and a trimmed one is wrong where ids are missing."""
    prompt = list(prompt_of(12, 3))
    output = naive_text("llama", tuple(prompt), SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True))
    answer = Answer(prompt, output, [[token] for token in output])
    right, part = Tally(), Tally()
    replay(whole_drafter(), answer, right, constant(1e9))
    replay(trimmed_drafter(SOME), answer, part, constant(1e9))
    assert right.timed(VOCABULARY, constant(1.0)).tokens_per_round > 6
    assert part.timed(8, constant(1.0)).tokens_per_round < right.timed(VOCABULARY, constant(1.0)).tokens_per_round
    assert right.tokens < len(output)


def test_a_rate_is_tokens_over_drafting_and_verifying() -> None:
    tally = Tally(tokens=30, rows=[4, 4, 9], drafting=[0.2, 0.2, 50.0], levels=[2, 2, 4])
    found = tally.timed(7, lambda rows: rows / 10)
    assert found.level_seconds == pytest.approx(0.1)
    assert found.tokens_per_second == pytest.approx(30 / (0.8 + 1.7))
    assert found.tokens_per_round == 10


# ---- the command


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sizes", "1,x"], "--sizes takes whole numbers"),
        (["--text", "/nowhere/text"], "cannot be read"),
        (["--prompts", "/nowhere/prompts"], "cannot be read"),
        (["--precision", "int3"], "precision must be one of"),
    ],
)
def test_wrong_use_is_told_before_a_model_is_loaded(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(["draft", "trim", *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_the_command_shows_what_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def found(config: EngineConfig, asks: list[object], texts: list[str], sizes: list[int], progress: object) -> find.Outcome:
        asked.extend((config.model, len(asks), texts, sizes))
        rows = [find.Timed(10, 1.5, 2.0, 0.01), find.Timed(20, 2.5, 3.0, 0.02)]
        return find.Outcome(rows, rows[1], 1234, tmp_path / "trim.json")

    monkeypatch.setattr(find, "find_trim", found)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "text").write_text("Häuser", encoding="utf-8")
    assert run(["draft", "trim", "-m", "m", "--sizes", "10,20", "--text", str(tmp_path / "text")]) == 0
    assert asked == ["m", 12, ["Häuser"], [10, 20]]
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if line.endswith("kept")] == [["20", "2.50", "3.00", "20.0", "kept"]]
    assert "1,234 tokens" in shown


def test_too_little_to_measure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find.catalogue, "resolve", lambda name, **_: type("R", (), {"name": name, "draft": None, "path": Path()})())
    with pytest.raises(ConfigError, match="No draft model is known"):
        find.find_trim(EngineConfig(model="m"), [], [])
    with pytest.raises(InvalidRequest, match="three prompts"):
        find.find_trim(EngineConfig(model="m", draft_model="d"), [], [])
