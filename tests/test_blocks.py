"""The block manager against a naive model that remembers, position by position, what was written into every physical block."""

from __future__ import annotations

import time

import pytest

from block_life import Machine
from hasten.cache.blocks import BlockManager
from hasten.core.errors import OutOfBlocks
from hasten.core.types import BLOCK_SIZE


def test_fuzz_against_the_naive_model() -> None:
    started = time.perf_counter()
    hits = evictions = refusals = 0
    for seed in range(50):
        blocks = 4 + seed % 9
        machine = Machine(BlockManager(blocks, block_size=1 + seed % 4, prefix_cache=seed % 10 != 9), seed)
        machine.run(2000)
        hits += machine.manager.statistics.hits
        evictions += machine.manager.statistics.evictions
        refusals += machine.refusals
        assert machine.done.keys() == {operation.__name__ for operation in machine.operations}
    assert hits > 5000  # the machine does reach what it is meant to test
    assert evictions > 3000
    assert refusals > 3000
    assert time.perf_counter() - started < 20  # 100,000 operations


class ForgetsAReference(BlockManager):
    def free(self, blocks: list[int]) -> None:
        super().free(blocks[1:] if len(blocks) > 2 else blocks)


class PublishesAPartialBlock(BlockManager):
    def publish(self, blocks: list[int], tokens: list[int], computed: int, tenant: str) -> None:
        rounded = -(-computed // self.block_size) * self.block_size
        super().publish(blocks, tokens, rounded if rounded <= len(tokens) else computed, tenant)


class IgnoresTheTenant(BlockManager):
    def _root(self, tenant: str) -> bytes:
        return super()._root("")


class IgnoresTheParent(BlockManager):
    def _chain(self, parent: bytes, tokens: list[int], index: int) -> bytes:
        return super()._chain(self._root("") if index else parent, tokens, index)


class DoesNotCopy(BlockManager):
    def make_writable(self, blocks: list[int], first: int) -> list[tuple[int, int]]:
        super().make_writable(blocks, first)
        return []


class DoesNotReplace(BlockManager):
    def make_writable(self, blocks: list[int], first: int) -> list[tuple[int, int]]:
        return []


class StaysFindableWhenWritten(BlockManager):
    def make_writable(self, blocks: list[int], first: int) -> list[tuple[int, int]]:
        return super().make_writable(blocks, first + 1)


class EvictsWithoutForgetting(BlockManager):
    def _evict(self) -> None:
        self._free.append(self._cached.popitem(last=False)[0])


class MatchesWithoutReference(BlockManager):
    def match_prefix(self, tokens: list[int], tenant: str, limit: int) -> list[int]:
        found = super().match_prefix(tokens, tenant, limit)
        self.free(found)
        return found


class MatchesOneTooMany(BlockManager):
    def match_prefix(self, tokens: list[int], tenant: str, limit: int) -> list[int]:
        return super().match_prefix(tokens, tenant, len(tokens))


class AllocatesHalfAndRaises(BlockManager):
    def allocate(self, count: int) -> list[int]:
        if count > self.available:
            super().allocate(self.available)
        return super().allocate(count)


MUTANTS = [
    ForgetsAReference,
    PublishesAPartialBlock,
    IgnoresTheTenant,
    IgnoresTheParent,
    DoesNotCopy,
    DoesNotReplace,
    StaysFindableWhenWritten,
    EvictsWithoutForgetting,
    MatchesWithoutReference,
    MatchesOneTooMany,
    AllocatesHalfAndRaises,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_fuzzer_catches(mutant: type[BlockManager]) -> None:
    def survives(seed: int) -> bool:
        try:
            Machine(mutant(4 + seed % 9, block_size=2 + seed % 3), seed).run(2000)
        except (AssertionError, KeyError, IndexError):
            return False
        return True

    assert not all(survives(seed) for seed in range(6))


def test_first_block_of_everything() -> None:
    manager = BlockManager(8)
    tokens = list(range(3 * BLOCK_SIZE + 5))
    blocks = manager.allocate(4)
    manager.publish(blocks, tokens, len(tokens), "me")
    assert manager.match_prefix(tokens, "me", len(tokens)) == blocks[:3]
    assert manager.match_prefix(tokens, "me", 3 * BLOCK_SIZE - 1) == blocks[:2]
    assert manager.match_prefix(tokens, "you", len(tokens)) == []
    assert manager.match_prefix(tokens[:BLOCK_SIZE] + tokens, "me", 10**9) == blocks[:1]
    assert manager.match_prefix(tokens, "me", 0) == manager.match_prefix(tokens, "me", -1) == []
    assert (manager.statistics.queries, manager.statistics.hits) == (0, 0)  # whoever makes use of what was found counts it
    manager.count(3 * BLOCK_SIZE - 1, 2)
    assert (manager.statistics.queries, manager.statistics.hits) == (2, 2)
    assert (manager.used, manager.available, manager.cached) == (4, 4, 0)


def test_the_tail_is_evicted_before_the_head() -> None:
    manager = BlockManager(4, block_size=1)
    blocks = manager.allocate(4)
    manager.publish(blocks, [1, 2, 3, 4], 4, "")
    manager.free(blocks)
    assert (manager.available, manager.cached) == (4, 4)
    for left in (3, 2, 1, 0):
        taken = manager.allocate(1)
        found = manager.match_prefix([1, 2, 3, 4], "", 4)
        assert found == blocks[:left]
        manager.free(found)
        manager.check_integrity([[block] for block in blocks[left:]])
        assert taken == [blocks[left]]


def test_a_found_prefix_is_recent_again() -> None:
    manager = BlockManager(2, block_size=1)
    first, second = manager.allocate(1), manager.allocate(1)
    manager.publish(first, [1], 1, "")
    manager.publish(second, [2], 1, "")
    manager.free(first)
    manager.free(second)
    manager.free(manager.match_prefix([1], "", 1))
    assert manager.allocate(1) == second


def test_a_duplicate_keeps_the_chain_in_order() -> None:
    """Two tables computed the same head side by side; the second one's tail hangs below the first one's head."""
    manager = BlockManager(4, block_size=1)
    one, two = manager.allocate(1), manager.allocate(2)
    manager.publish(one, [7], 1, "")
    manager.publish(two, [7, 8], 2, "")
    manager.free(one)
    manager.free(two)
    manager.check_integrity([])
    assert manager.cached == 2
    assert manager.match_prefix([7, 8], "", 2) == [one[0], two[1]]
    manager.free([one[0], two[1]])
    held = manager.allocate(3)
    assert manager.match_prefix([7, 8], "", 2) == one  # the tail went first
    manager.check_integrity([held, one])


def test_a_duplicate_takes_the_place_of_an_evicted_first() -> None:
    manager = BlockManager(2, block_size=1)
    one, two = manager.allocate(1), manager.allocate(1)
    manager.publish(one, [7], 1, "")
    manager.publish(two, [7], 1, "")
    manager.free(one)
    assert manager.allocate(1) == one
    manager.free(two)
    assert manager.match_prefix([7], "", 1) == two


def test_out_of_blocks_has_no_side_effects() -> None:
    manager = BlockManager(3, block_size=1)
    blocks = manager.allocate(2)
    manager.publish(blocks, [1, 2], 2, "")
    shared = manager.fork(blocks)
    with pytest.raises(OutOfBlocks, match="1 of 3 blocks left and 2 are needed"):
        manager.allocate(2)
    before = list(blocks)
    with pytest.raises(OutOfBlocks):
        manager.make_writable(blocks, 0)
    assert blocks == before == shared
    manager.check_integrity([blocks, shared])
    copies = manager.make_writable(blocks, 1)
    assert copies == [(before[1], blocks[1])]
    assert blocks[1] not in before
    manager.check_integrity([blocks, shared])


def test_publishing_is_incremental() -> None:
    class Counting(BlockManager):
        digests = 0

        def _chain(self, parent: bytes, tokens: list[int], index: int) -> bytes:
            self.digests += 1
            return super()._chain(parent, tokens, index)

    manager = Counting(64, block_size=4)
    blocks = manager.allocate(64)
    tokens = list(range(256))
    for computed in range(257):
        manager.publish(blocks, tokens, computed, "")
        manager.publish(blocks, tokens, computed, "")
    assert manager.digests == 64


def test_looking_again_makes_no_digest_twice() -> None:
    made = 0

    class Counting(BlockManager):
        def _chain(self, parent: bytes, tokens: list[int], index: int) -> bytes:
            nonlocal made
            made += 1
            return super()._chain(parent, tokens, index)

    manager = Counting(64, block_size=4)
    blocks, tokens = manager.allocate(32), list(range(200))
    manager.publish(blocks, tokens, 128, "")
    manager.free(blocks)
    made, chain = 0, []
    for _ in range(5):
        found = manager.match_prefix(tokens, "", 199, chain)
        assert len(found) == 32
        manager.free(found)
    assert made == 33
    assert manager.match_prefix(tokens, "", 199) == manager.match_prefix([*tokens, 1], "", 200, chain)


def test_clear_cache_forgets_everything_and_publishing_begins_anew() -> None:
    manager = BlockManager(4, block_size=1)
    gone, kept = manager.allocate(2), manager.allocate(2)
    manager.publish(gone, [1, 2], 2, "")
    manager.publish(kept, [3, 4], 2, "")
    manager.free(gone)
    manager.clear_cache()
    manager.check_integrity([kept])
    assert manager.match_prefix([1, 2], "", 2) == manager.match_prefix([3, 4], "", 2) == []
    manager.publish(kept, [3, 4], 2, "")
    assert manager.match_prefix([3, 4], "", 2) == kept


def test_addresses_cannot_be_guessed_from_outside() -> None:
    one, two = BlockManager(1, block_size=1), BlockManager(1, block_size=1)
    for manager in (one, two):
        manager.publish(manager.allocate(1), [1], 1, "tenant")
    assert one._holder.keys().isdisjoint(two._holder.keys())


def test_odd_tenants_and_tokens_are_told_apart() -> None:
    manager = BlockManager(16, block_size=1)
    names = ["", "\x00", "é", "\ud800", "a" * 1000]
    for name in names:
        manager.publish(manager.allocate(1), [2**31 - 1], 1, name)
    assert len({manager.match_prefix([2**31 - 1], name, 1)[0] for name in names}) == len(names)


@pytest.mark.parametrize("breakage", ["reference", "free twice", "lost", "address", "unfindable", "table"])
def test_the_integrity_check_names_what_is_broken(breakage: str) -> None:
    manager = BlockManager(6, block_size=1)
    cached, table = manager.allocate(1), manager.allocate(2)
    manager.publish(cached, [1], 1, "")
    manager.free(cached)
    manager.check_integrity([table])
    sentence = {
        "reference": "has 2 references but stands in 1 tables",
        "free twice": "names a block twice",
        "lost": "neither free nor cached nor in use",
        "address": "under an address that is not its own",
        "unfindable": "cannot be found",
        "table": "lists a block twice",
    }[breakage]
    if breakage == "reference":
        manager.fork(table[:1])
    elif breakage == "free twice":
        manager._free.append(manager._free[0])
    elif breakage == "lost":
        manager._free.pop()
    elif breakage == "address":
        manager._address[cached[0]] = b"other"
    elif breakage == "unfindable":
        manager._holder.clear()
    else:
        table = [*table, table[0]]
    with pytest.raises(AssertionError, match=sentence):
        manager.check_integrity([table])


def test_misuse_is_an_assertion() -> None:
    manager = BlockManager(2, block_size=1)
    blocks = manager.allocate(1)
    manager.free(blocks)
    for misuse in (lambda: manager.free(blocks), lambda: manager.fork(blocks), lambda: manager.publish([], [1], 1, "")):
        with pytest.raises(AssertionError):
            misuse()
