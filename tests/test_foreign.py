"""Draft models of another vocabulary: what the two vocabularies share, how text is read and told across them, and that nothing of
it changes a text."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import hasten.draft.foreign as foreign_module
from foreign_words import Pieces, letters, others
from hasten.cache.blocks import BlockManager
from hasten.core.errors import ConfigError, VocabularyMismatch
from hasten.core.types import SamplingParams, Sequence
from hasten.draft.base import DraftBudget
from hasten.draft.foreign import MATCHES, ForeignDrafter
from hasten.draft.vocabularies import Merges, Overlap, Reading, Telling, encoded, overlap
from hasten.sampling.guess import draft_law
from test_exact import SETTINGS, expected_texts, prompt_of
from tiny import LETTERS, run_all, tiny_engine, tiny_executor
from vocabularies import HARD, build, byte_level, real_tokenizer, sentencepiece

GENEROUS = DraftBudget(nodes=24, depth=8)
PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "toys": lambda: (letters(), others()),
    "byte level, and SentencePiece": lambda: (build(byte_level()), build(sentencepiece(False))),
    "SentencePiece that adds a space, and byte level": lambda: (build(sentencepiece(True)), build(byte_level("qwen2"))),
    "byte level, and SentencePiece that adds a space": lambda: (build(byte_level("qwen2")), build(sentencepiece(True))),
}


def foreign(match: str, kind: str = "llama", perturbed: float = 0.3, **shape: Any) -> ForeignDrafter:
    blocks, target, own = 48, letters(), others()
    forward = tiny_executor(kind, num_blocks=blocks, perturbed=perturbed).forward
    manager = BlockManager(blocks, prefix_cache=False)
    return ForeignDrafter(forward, manager, target, own, overlap(target, own), 512, match, **shape)


# What two vocabularies share.


@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_shared_spells_the_same(pair: str) -> None:
    target, own = PAIRS[pair]()
    shared = overlap(target, own)
    assert len(shared.target) == len(shared.own) == len(set(shared.target.tolist())) == len(set(shared.own.tolist()))
    assert shared.target.tolist() == sorted(shared.target.tolist())
    for there, here in zip(shared.target.tolist(), shared.own.tolist(), strict=True):
        assert shared.to_own[there] == here
        assert shared.to_target[here] == there
        if there in target.eos_token_ids:
            assert here in own.eos_token_ids
        else:
            assert target.token_bytes(there) == own.token_bytes(here) != b""
            assert there not in target.special_ids
            assert here not in own.special_ids
    texts = {target.token_bytes(token) for token in range(target.vocabulary_size) if token not in target.special_ids}
    mine = {own.token_bytes(token) for token in range(own.vocabulary_size) if token not in own.special_ids}
    ends = sum(token in target.eos_token_ids for token in shared.target.tolist())
    assert len(shared.target) - ends == len((texts & mine) - {b""})
    assert ends == 1


def test_too_little_in_common_is_said_in_one_sentence() -> None:
    target, own = letters(), Pieces(["aa", "bb", "c"])
    with pytest.raises(VocabularyMismatch, match=r"'small' cannot draft for 'large': only 2 tokens .*; choose a draft model"):
        overlap(target, own).check("small", "large")
    overlap(letters(), others()).check("small", "large")


# Reading across vocabularies.


@pytest.mark.parametrize("pair", PAIRS)
def test_reading_piece_by_piece_is_reading_at_once(pair: str) -> None:
    """Where the tokenizers agree on what the text is; text of other scripts is read without harm."""
    target, own = PAIRS[pair]()
    shared = overlap(target, own)
    prose = "It was not the dog that they had said. The fox, and then 12 other dogs.\nAnd so on and so forth, abc cab the end. " * 3
    prose = "".join(letter for letter in prose if letter in LETTERS) if pair == "toys" else prose
    ids = target.encode(prose, add_bos=False)
    prose = prose if pair == "toys" else target.decode(ids)
    for seed in range(5):
        rng, reading, at = random.Random(seed), Reading(target, own, shared), 0
        while at < len(ids):
            at = min(len(ids), at + rng.randint(1, 7))
            before = list(reading.tokens)
            standing = reading.extend(ids[:at])
            assert reading.tokens[:standing] == before[:standing]
        once = [*own.prefix_ids, *own.encode(prose, add_bos=False, allow_special=False)]
        assert reading.tokens == once
    for text in HARD if pair != "toys" else ():
        reading, ids = Reading(target, own, shared), target.encode(text, add_bos=False)
        for at in range(len(ids) + 1):
            standing = reading.extend(ids[:at])
            assert 0 <= standing <= len(reading.tokens)


def test_an_end_of_answer_is_read_as_one() -> None:
    target, own = letters(), others()
    reading = Reading(target, own, overlap(target, own))
    reading.extend([*target.encode("abc the"), *target.eos_token_ids, *target.encode("abc")])
    assert reading.tokens == [*own.encode("abc the"), *own.eos_token_ids, *own.encode("abc")]


def test_reading_reports_what_changed() -> None:
    """ "ab" is one token of the other vocabulary, and so is "abc": what was read must be taken back."""
    target, own = letters(), others()
    reading = Reading(target, own, overlap(target, own))
    reading.extend(target.encode("xab"))
    assert reading.extend(target.encode("xabc")) == 1
    assert reading.tokens == own.encode("xabc")


# Telling.


def test_a_draft_is_told_as_the_target_would_write_it() -> None:
    target, own = others(), letters()
    telling = Telling(target, own)
    before = target.encode("so ")
    draft = own.encode("the abc")
    told = telling.tell(before, draft)
    assert [target.pieces[token] for token, _ in told] == ["the", " ", "abc"]
    assert [begun for _, begun in told] == [3, 4, 7]


def test_text_that_joins_over_the_border_is_told_by_itself() -> None:
    """The target has said "a" and will not take it back for "ab"."""
    target, own = others(), letters()
    told = Telling(target, own).tell(target.encode("x ") + target.encode("a"), own.encode("bx"))
    assert [target.pieces[token] for token, _ in told] == ["b", "x"]


def test_a_token_of_several_is_told_in_parts() -> None:
    target, own = letters(), others()
    told = Telling(target, own).tell(target.encode("x"), own.encode("the."))
    assert told == [(*target.encode("t"), 1), (*target.encode("h"), 1), (*target.encode("e"), 1), (*target.encode("."), 2)]


def test_merges_are_learnt_and_told_longest_first() -> None:
    target, own = others(), letters()
    merges = Merges(own, target, overlap(target, own))
    draft = own.encode("abcx")
    assert [target.pieces[token] for token, _ in merges.tell([], draft)] == ["a", "b", "c", "x"]
    merges.learn(target.encode("ab"))
    assert merges.tell([], draft) == [(*target.encode("ab"), 2), (*target.encode("c"), 3), (*target.encode("x"), 4)]
    merges.learn(target.encode("abc"))
    assert merges.tell([], draft) == [(*target.encode("abc"), 3), (*target.encode("x"), 4)]
    assert len(merges) == 2
    assert Merges(others(), letters(), overlap(letters(), others())).tell([], others().encode("thex")) == []  # no such token


class Twins:
    """ "," is a byte that everything can fall back to, and a token of its own further on; so is "ab"."""

    special_ids = frozenset[int]()
    eos_token_ids = ()
    prefix_ids = ()
    strips_space = False
    pieces = (",", "ab", "a", "b", "c", ",", "ab")
    vocabulary_size = len(pieces)

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token].encode()

    def encode(self, text: str, *, add_bos: bool, allow_special: bool = True) -> list[int]:
        return [len(self.pieces) - 1 - self.pieces[::-1].index(letter) for letter in text]


def test_of_tokens_that_spell_the_same_the_one_that_is_said_is_shared() -> None:
    twins = Twins()
    for target, own in ((twins, twins), (twins, letters()), (letters(), twins)):
        shared = overlap(target, own)
        assert shared.to_own[target.encode(",", add_bos=False)[0]] == own.encode(",", add_bos=False)[0]


def test_merges_of_tokens_that_spell_the_same_are_forgotten_one_by_one() -> None:
    target, own = Twins(), letters()
    merges = Merges(own, target, overlap(target, own), most=1)
    for token in (1, 6, 1, 6):
        merges.learn([token])
        assert len(merges) == 1
        assert merges.tell([], own.encode("ab")) == [(token, 2)]
    merges.most = 2
    merges.learn([1])  # now both are known
    for token in (6, 1):
        merges._forget(token)
    assert merges._by_first == {}
    assert merges.tell([], own.encode("ab")) == [(2, 1), (3, 2)]


def test_merges_are_bounded_and_forget_the_oldest() -> None:
    target, own = others(), letters()
    merges = Merges(own, target, overlap(target, own), most=2)
    for text in ("ab", "cd", "ab", "ca"):
        merges.learn(target.encode(text))
    assert len(merges) == 2
    assert [len(merges.tell([], own.encode(text))) for text in ("ab", "cd", "ca")] == [1, 2, 1]


# The drafter.


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("tree", ["chain", "rsd-c"])
def test_the_text_is_left_alone(match: str, tree: str, setting: str) -> None:
    kind, params = "qwen3" if setting == "hot" else "llama", SETTINGS[setting]
    prompts = [prompt_of(length, seed) for seed, length in enumerate((1, 5, 64, 90))]
    engine = tiny_engine(kind, [foreign(match, kind, tree=tree)], max_rows=48, max_sequences=3)
    requests = [engine.submit(list(prompt), params) for prompt in prompts]
    outputs = run_all(engine, requests)
    assert outputs == expected_texts(kind, [(prompt, params) for prompt in prompts], outputs)
    assert sum(request.speculation.drafted for request in requests) > 0


class Echo:
    """A draft model that says a text again and again, whatever it is fed: it looks at positions only, and at its own ids."""

    def __init__(self, own: Pieces, text: str) -> None:
        self.ids = own.encode(text)
        self.own = own

    def __call__(self, batch: Any) -> torch.Tensor:
        rows = []
        for segment in batch.segments:
            fed = [*segment.chain, *segment.tree.tokens]
            assert all(0 <= token < self.own.vocabulary_size for token in fed), "it is fed its own ids"
            for token in fed[segment.first_logit :]:
                row = torch.zeros(self.own.vocabulary_size)
                row[self.ids[(self.ids.index(token) + 1) % len(self.ids)] if token in self.ids else self.ids[0]] = 20.0
                rows.append(row)
        return torch.stack(rows) if rows else torch.empty(0, self.own.vocabulary_size)


def proposed(match: str, text: str, said: str, **shape: Any) -> list[str]:
    """What is drafted after ``said`` by a model that thinks of ``text``, path by path, where the target spells with pieces."""
    target, own = others(), letters()
    drafter = ForeignDrafter(
        Echo(own, text), BlockManager(8, prefix_cache=False), target, own, overlap(target, own), 512, match, **shape
    )
    tokens = target.encode(said)
    sequence = Sequence(0, "request-0", SamplingParams(), 0, tokens, len(tokens), length_limit=4096)
    drafter.begin(sequence)
    tree = drafter.propose([sequence], [GENEROUS])[0]
    assert all(0 <= token < target.vocabulary_size for token in tree.tokens)
    parents = set(tree.parents)
    return [
        "|".join(target.pieces[tree.tokens[node]] for node in tree.path(leaf)) for leaf in range(len(tree)) if leaf not in parents
    ]


def test_strings_are_told_in_the_targets_pieces() -> None:
    assert proposed("strings", "abcthe ", " x ", width=1) == ["abc|the| |a"]


def test_only_what_both_have_is_chosen_token_by_token() -> None:
    assert proposed("tokens", "abcthe ", " x ", width=1) == ["a|b|c|t|h|e| |a"]


def test_merges_come_with_the_text() -> None:
    assert proposed("merges", "abcthe ", " x ", width=1) == ["a|b|c|t|h|e| |a"]
    assert proposed("merges", "abcthe ", "the abc x ", width=1) == ["abc|the| |a"]


def test_an_end_is_proposed_as_the_targets_end() -> None:
    target, own = others(), letters()

    class Ends(Echo):
        def __init__(self) -> None:
            super().__init__(own, "ab")
            self.ids = [*own.encode("ab"), *own.eos_token_ids]

    for match in MATCHES:
        drafter = ForeignDrafter(
            Ends(), BlockManager(8, prefix_cache=False), target, own, overlap(target, own), 512, match, width=1
        )  # fmt: skip
        tokens = target.encode("x ")
        sequence = Sequence(0, "request-0", SamplingParams(), 0, tokens, len(tokens), length_limit=4096)
        drafter.begin(sequence)
        tree = drafter.propose([sequence], [DraftBudget(8, 3)])[0]
        assert target.eos_token_ids[0] in tree.tokens


def test_tenants_do_not_see_each_others_merges() -> None:
    target, own = others(), letters()
    drafter = ForeignDrafter(
        Echo(own, "abcx"), BlockManager(16, prefix_cache=False), target, own, overlap(target, own), 512, "merges", width=1
    )  # fmt: skip
    trees = []
    for number, (tenant, text) in enumerate((("one", "abc "), ("two", "x "), ("one", "x "))):
        tokens = target.encode(text)
        sequence = Sequence(number, "r", SamplingParams(), 0, tokens, len(tokens), length_limit=4096, tenant=tenant)
        drafter.begin(sequence)
        trees.append([target.pieces[token] for token in drafter.propose([sequence], [GENEROUS])[0].tokens])
    assert trees[0][0] == trees[2][0] == "abc"
    assert trees[1][0] == "a"


def test_a_foreign_match_must_be_known() -> None:
    with pytest.raises(ConfigError, match="strings, tokens, merges"):
        foreign("characters")


# The law of the intersection.


def test_the_intersection_is_the_drafts_law_given_what_both_have() -> None:
    """Toy vocabularies {a, b, ab} and {a, b, ba}: the law of a draft is its own, without "ba", in the target's ids."""
    target, own = Pieces(["a", "b", "ab"]), Pieces(["ba", "b", "a"])
    shared = overlap(target, own)
    masses = np.array([0.5, 0.2, 0.2, 0.1])  # ba, b, a, end
    row = torch.log(torch.tensor(masses))
    law = draft_law(row[torch.from_numpy(shared.own)], SamplingParams(temperature=1.0), 3, vocabulary_size=4, ids=shared.target)
    assert {token: round(float(law.of(token)), 12) for token in range(4)} == {0: 0.4, 1: 0.4, 2: 0.0, 3: 0.2}


def draws_of(drafter: ForeignDrafter, text: str) -> tuple[Any, Any]:
    tokens = letters().encode(text)
    sequence = Sequence(0, "r", SamplingParams(temperature=1.0), 5, tokens, len(tokens), length_limit=4096)
    drafter.begin(sequence)
    return drafter.draw([sequence], [GENEROUS])[0]


def test_only_the_intersection_draws() -> None:
    assert [foreign(match).draws for match in MATCHES] == [False, True, False]
    tree, laws = draws_of(foreign("tokens", tree="rsd-s"), "the abc cab")
    laws.check(tree)
    assert laws.drawn == set(range(len(tree)))
    shared = set(overlap(letters(), others()).target.tolist())
    assert all(set(law.ids[law.masses > 0].tolist()) <= shared for law in laws.at.values())


# Mutants.


def test_taking_a_models_own_ids_for_the_targets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_module, "_choices", lambda target, own, shared, match: (shared.own, shared.own))
    with pytest.raises((AssertionError, KeyError)):
        test_only_what_both_have_is_chosen_token_by_token()


def test_reading_without_looking_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Reading, fresh: bytes) -> int:
        before = len(self.tokens)
        self.tokens += encoded(self.own, fresh) if fresh else []
        return before

    monkeypatch.setattr(Reading, "_append", careless)
    with pytest.raises(AssertionError):
        test_reading_reports_what_changed()


# Real vocabularies.


@pytest.mark.real
def test_real_vocabularies_read_each_other() -> None:
    target, own = real_tokenizer("qwen2.5-coder-0.5b"), real_tokenizer("smollm2-135m")
    shared: Overlap = overlap(target, own)
    shared.check("smollm2-135m", "qwen2.5-coder-0.5b")
    assert len(shared.target) > 39_000
    names = {target.token_bytes(token) for token in target.eos_token_ids}
    assert {target.token_bytes(token) for token in shared.target.tolist() if token in target.eos_token_ids} == names
    text = "def f(x):\n\treturn x**2  # naïve façade 日本語 🎉\n\nThe quick brown fox, 12345 times.\n" * 3
    ids = target.encode(text, add_bos=False)
    reading = Reading(target, own, shared)
    for at in range(0, len(ids) + 1, 3):
        reading.extend(ids[:at])
    reading.extend(ids)
    assert reading.tokens == own.encode(text, add_bos=False, allow_special=False)


@pytest.mark.real
def test_what_merges_say_of_their_memory_is_about_what_they_take() -> None:
    target, own = real_tokenizer("qwen2.5-coder-0.5b"), real_tokenizer("smollm2-135m")
    merges = Merges(own, target, overlap(target, own))
    merges.learn(range(20_000, 20_100))  # whatever tokenizers make once is made
    before = merges.bytes
    gc.collect()
    tracemalloc.start()
    merges.learn(range(60_000, 75_000))
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert merges.bytes > before
    assert 0.5 < (merges.bytes - before) / taken < 2.0, (merges.bytes, taken)
