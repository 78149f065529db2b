"""A draft model that computes part of the vocabulary: the same logits, the same noise, never another text."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from hasten.cache.blocks import BlockManager
from hasten.core.types import Batch, DraftTree, SamplingParams, Segment, Sequence, Verdict
from hasten.draft import shortlist
from hasten.draft.base import DraftBudget
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.shortlist import Shortlists
from hasten.model import head as head_module
from hasten.model.decoder import Decoder
from hasten.model.executor import Executor
from hasten.model.head import ConvertedRows, DenseRows, TrimmedHead, head_rows
from hasten.model.linear import Linear
from hasten.model.precision import FP32, FP64, INT3, INT8, Precision
from hasten.model.weights import load_decoder
from hasten.native.kernels import GrowingLinear, PackedLinear, PackedProgressive
from hasten.native.loader import load as native
from test_exact import SETTINGS, prompt_of
from tiny import CPU, DESCRIPTIONS, VOCABULARY, RandomSource, naive_text, run_all, tiny_engine

KINDS = ("llama", "llama3", "gemma3")  # a head of its own, a tied one, one with softcap
SOME = np.array([0, 3, 4, 17, 30, 31, 55, 60])
HALF = np.arange(0, VOCABULARY, 2)


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


def test_beside_three_bits_a_head_has_four(tmp_path: Path) -> None:
    """Every id is still its own, and its logit near the whole head's; the whole head itself stays in eight bits."""
    if native() is None:
        pytest.skip("int3 needs the native kernels")
    whole, part, head = whole_and_part("llama", INT3, tmp_path, SOME)
    assert isinstance(whole.weights.head, PackedLinear)
    assert isinstance(head._fixed, PackedProgressive)
    more = np.array([5, 6, 58])
    head.hold(more)
    want, got = logits_of(whole, prompt_of(30, 3)), logits_of(part, prompt_of(30, 3))
    assert head.ids.tolist() == [*SOME, *more]
    picked = want[:, torch.from_numpy(head.ids)]
    assert 0.0 < float((got - picked).square().mean() / picked.var()) < 0.02


def test_int8_weights_that_are_nowhere_cannot_be_trimmed(tmp_path: Path) -> None:
    source = RandomSource(DESCRIPTIONS["llama"])
    decoder = load_decoder(source, INT8, CPU, None)
    assert head_rows(source, decoder, None) is None
    assert head_rows(source, decoder, tmp_path / "none") is None
    (tmp_path / "bad").write_bytes(b"x" * 5000)
    assert head_rows(source, decoder, tmp_path / "bad") is None


# ---- what a text adds


def shortlists(fixed: np.ndarray = SOME) -> tuple[Shortlists, TrimmedHead, torch.Tensor]:
    weight = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = TrimmedHead(DenseRows(weight), fixed)
    return Shortlists(head, VOCABULARY), head, weight


@pytest.mark.parametrize("stale", [0, 3, 256])
@pytest.mark.parametrize("recent", [0, 2, 64])
def test_each_text_sees_the_fixed_ids_and_its_own(stale: int, recent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "MOST_STALE", stale)
    monkeypatch.setattr(head_module, "MOST_RECENT", recent)
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
        before = len(head.ids)
        lists.prepare()
        assert (
            len(head.ids) == before
            or len(head.ids) <= len(SOME) + sum(len(mine - {*SOME.tolist()}) for mine in own.values()) + stale
        )
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


def test_ended_texts_leave_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "MOST_STALE", 0)
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


def test_a_head_that_grows_copies_little_more_than_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "MOST_RECENT", 8)
    weight = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    copied: list[int] = []

    class Counted(DenseRows):
        def __call__(self, ids: np.ndarray) -> Linear:
            copied.append(len(ids))
            return super().__call__(ids)

    head = TrimmedHead(Counted(weight), SOME[:1])
    head_of = [token for token in range(VOCABULARY) if token not in SOME[:1]]
    x = torch.randn(2, 8, dtype=torch.float64)
    for count in range(len(head_of) + 1):
        head.hold(np.array(head_of[:count], np.int64))
        torch.testing.assert_close(head(x), (x @ weight.T)[:, head.ids])
    assert sum(size > 8 for size in copied) <= len(head_of) // 8


def test_a_long_head_that_grows_copies_each_row_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs: of 2,000 rows that come three at a time each is copied some ten times, and not for each that comes."""
    monkeypatch.setattr(head_module, "MOST_RECENT", 16)
    copied: list[int] = []

    class Counted(DenseRows):
        def __call__(self, ids: np.ndarray) -> Linear:
            copied.append(len(ids))
            return super().__call__(ids)

    weight = torch.randn(2001, 4, generator=torch.Generator().manual_seed(0))
    head, x = TrimmedHead(Counted(weight), np.array([0])), torch.randn(1, 4)
    for count in range(3, 2001, 3):
        head.hold(np.arange(1, 1 + count))
        assert len(head._parts()) <= 4
        torch.testing.assert_close(head(x), (x @ weight.T)[:, : 1 + count])
    assert sum(copied) < 20 * 2000


def test_rows_of_a_converted_head_join_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(4)
    codes, scale = torch.randint(-127, 128, (300, 64), dtype=torch.int8, generator=random), torch.rand(300, generator=random)
    rows, x = ConvertedRows(codes.numpy(), scale.numpy(), False), torch.randn(2, 64, generator=random)
    if rows.joining() is None:
        pytest.skip("the native kernels are not built")
    joined: list[int] = []
    join = GrowingLinear.join
    monkeypatch.setattr(GrowingLinear, "join", lambda self, new, scales: (joined.append(len(new)), join(self, new, scales))[1])
    head, others = TrimmedHead(rows, np.arange(50)), np.arange(299, 49, -1)
    for count in (0, 3, 3, 40, 41, 250):
        head.hold(others[:count])
        assert torch.equal(head(x), rows(head.ids)(x))
    assert joined == [3, 37, 1, 209]
    for more in (others[:9][::-1], others[:2][::-1], others[:0]):
        head.hold(more)  # another order, or fewer, is another choice
        assert torch.equal(head(x), rows(head.ids)(x))


def test_another_order_of_ids_is_another_choice() -> None:
    weight = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head, head_of, x = (
        TrimmedHead(DenseRows(weight), SOME[:1]),
        [t for t in range(VOCABULARY) if t not in SOME[:1]],
        torch.randn(2, 8, dtype=torch.float64),
    )
    head.hold(np.array(head_of, np.int64))
    head.hold(np.array(head_of[:30][::-1], np.int64))  # another order is another choice
    torch.testing.assert_close(head(x), (x @ weight.T)[:, head.ids])


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
