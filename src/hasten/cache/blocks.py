"""Who owns which block of the key-value pool. Pure bookkeeping: no tensors, no torch.

A block holds the keys and values of ``block_size`` consecutive positions. A *table* is a sequence's list of blocks. Blocks are
counted by reference, so that tables can share them: forks of one request share everything until one of them writes (copy on
write), and sequences of one tenant share full blocks of equal content (prefix cache).

A block is in exactly one state:

    free       nobody refers to it, its content means nothing
    used       at least one table refers to it
    cached     nobody refers to it, but its content is known and can be found again; evicted, least recently used first

Content is addressed by a chain of 256-bit BLAKE2b digests over (random salt of this manager, tenant, token ids from the start
up to the end of the block), so an equal address means equal keys and values, and no tenant can find or guess another's.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from hasten.core.errors import OutOfBlocks
from hasten.core.types import BLOCK_SIZE


@dataclass(slots=True)
class CacheStatistics:
    """Counts since the manager was made, in blocks: looked for in the prefix cache, found there, and evicted from it."""

    queries: int = 0
    hits: int = 0
    evictions: int = 0


class BlockManager:
    """Hands out the blocks 0 .. num_blocks - 1 of a pool. Not thread-safe: one engine, one thread.

    Misuse (freeing what nobody holds, publishing past the table) is the engine's own mistake and raises AssertionError.
    """

    def __init__(self, num_blocks: int, block_size: int = BLOCK_SIZE, prefix_cache: bool = True) -> None:
        assert num_blocks > 0, "a pool has at least one block"
        assert block_size > 0, "a block has at least one position"
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.statistics = CacheStatistics()
        self._salt = secrets.token_bytes(32)
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        # The address of a block whose content is full and known. Of several blocks with one address, _holder names the one
        # that match_prefix finds; the others are duplicates, computed side by side.
        self._address: list[bytes | None] = [None] * num_blocks
        self._holder: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that ``allocate`` can hand out now: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        """Blocks that some table refers to."""
        return self.num_blocks - self.available

    @property
    def cached(self) -> int:
        """Blocks that nobody refers to and whose content can still be found."""
        return len(self._cached)

    def match_prefix(self, tokens: list[int], tenant: str, limit: int, chain: list[bytes] | None = None) -> list[int]:
        """The longest run of known full blocks that starts ``tokens`` and covers at most ``limit`` of them.

        Takes one reference on each returned block; the caller owes a ``free``, and a ``count`` where it makes use of them. Who
        looks for the same tokens again, or more behind them, gives the same ``chain`` each time, empty at first: no digest is made
        twice.
        """
        found: list[int] = []
        wanted = min(limit, len(tokens)) // self.block_size if self.prefix_cache else 0
        if wanted <= 0:
            return found
        chain = [] if chain is None else chain
        for index in range(wanted):
            if index == len(chain):
                chain.append(self._chain(chain[-1] if chain else self._root(tenant), tokens, index))
            block = self._holder.get(chain[index])
            if block is None:
                break
            self._refer(block)
            found.append(block)
        return found

    def count(self, limit: int, found: int) -> None:
        """Count a look-up of at most ``limit`` tokens that found so many blocks."""
        if self.prefix_cache:
            self.statistics.queries += limit // self.block_size
            self.statistics.hits += found

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks for exclusive use, their content undefined. Cached blocks are evicted when no free one is left.

        Raises OutOfBlocks, with nothing changed, when fewer are available.
        """
        assert count >= 0, "the number of blocks to allocate is not negative"
        if count > self.available:
            raise OutOfBlocks(
                f"The key-value pool has {self.available} of {self.num_blocks} blocks left and {count} are needed; "
                "let other requests finish or raise cache_tokens."
            )
        blocks: list[int] = []
        for _ in range(count):
            if not self._free:
                self._evict()
            block = self._free.pop()
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def publish(self, blocks: list[int], tokens: list[int], computed: int, tenant: str) -> None:
        """Make the full blocks of a table findable: those that ``tokens[:computed]`` cover entirely.

        Costs one digest a block that is new since the last call. Where an equal block is known already, that one stays the
        one to be found, and the table keeps its own.
        """
        full = computed // self.block_size
        assert full <= len(blocks), "published positions lie within the table"
        assert computed <= len(tokens), "published positions have known tokens"
        if not self.prefix_cache or full <= 0:
            return
        known = full
        while known > 0 and self._address[blocks[known - 1]] is None:
            known -= 1
        address = self._address[blocks[known - 1]] if known else None
        if address is None:
            address = self._root(tenant)
        for index in range(known, full):
            address = self._chain(address, tokens, index)
            self._address[blocks[index]] = address
            self._holder.setdefault(address, blocks[index])

    def fork(self, blocks: list[int]) -> list[int]:
        """A second table over the same blocks: one more reference on each."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is forked while nobody holds it"
            self._references[block] += 1
        return list(blocks)

    def make_writable(self, blocks: list[int], first: int) -> list[tuple[int, int]]:
        """Prepare a table for writing from block index ``first`` on.

        Shared blocks are replaced, in place in ``blocks``, by fresh ones; returns the (source, destination) copies that the
        caller must perform before writing. Blocks owned alone stay, but can no longer be found by their old content.
        Raises OutOfBlocks, with nothing changed, when there are too few fresh ones.
        """
        shared = [index for index in range(first, len(blocks)) if self._references[blocks[index]] > 1]
        copies: list[tuple[int, int]] = []
        for index, fresh in zip(shared, self.allocate(len(shared)), strict=True):
            copies.append((blocks[index], fresh))
            self._references[blocks[index]] -= 1
            blocks[index] = fresh
        for block in blocks[first:]:
            self._forget(block)
        return copies

    def free(self, blocks: list[int]) -> None:
        """Drop one reference on each block of a table. What nobody holds becomes cached, when its content is known, or free.

        The tail goes before the head: whoever evicts takes the end of a chain first, so that what stays can be reached.
        """
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} is freed while nobody holds it"
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            address = self._address[block]
            if address is None:
                self._free.append(block)
                continue
            holder = self._holder.setdefault(address, block)
            if holder == block:
                self._cached[block] = None
                continue
            self._address[block] = None
            self._free.append(block)
            if holder in self._cached:  # it stands for this block, whose children have just become recent
                self._cached.move_to_end(holder)

    def clear_cache(self) -> None:
        """Forget all known content. Blocks in use stay in use; a later ``publish`` makes them findable anew."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._holder.clear()
        self._address = [None] * self.num_blocks

    def check_integrity(self, live: Iterable[list[int]]) -> None:
        """Compare the books with the tables that are in use, all of them. Raises AssertionError that names what is broken.

        Takes time proportional to the pool: for tests and for debugging.
        """
        held: Counter[int] = Counter()
        for table in live:
            _check(len(set(table)) == len(table), f"a table lists a block twice: {table}")
            held.update(table)
        for block in range(self.num_blocks):
            count = self._references[block]
            _check(count == held[block], f"block {block} has {count} references but stands in {held[block]} tables")
        self._check_partition(set(held))
        self._check_addresses()

    def _check_partition(self, used: set[int]) -> None:
        free = set(self._free)
        _check(len(free) == len(self._free), "the free list names a block twice")
        _check(not free & self._cached.keys(), "a block is both free and cached")
        _check(not free & used, "a block is both free and in use")
        _check(not used & self._cached.keys(), "a block is both cached and in use")
        everything = free | self._cached.keys() | used
        _check(everything == set(range(self.num_blocks)), "some block is neither free nor cached nor in use, or does not exist")

    def _check_addresses(self) -> None:
        for address, block in self._holder.items():
            _check(self._address[block] == address, f"block {block} is found under an address that is not its own")
        for block in self._free:
            _check(self._address[block] is None, f"free block {block} still has an address")
        for block in self._cached:
            known = self._address[block]
            _check(known is not None and self._holder.get(known) == block, f"cached block {block} cannot be found")
        if not self.prefix_cache:
            _check(not self._holder and not self._cached, "the prefix cache is off but holds blocks")

    def _root(self, tenant: str) -> bytes:
        return hashlib.blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=32, key=self._salt).digest()

    def _chain(self, parent: bytes, tokens: list[int], index: int) -> bytes:
        """Address of the block at ``index`` of a table, given its predecessor's."""
        content = array("q", tokens[index * self.block_size : (index + 1) * self.block_size])
        return hashlib.blake2b(parent + content.tobytes(), digest_size=32, key=self._salt).digest()

    def _refer(self, block: int) -> None:
        if self._references[block] == 0:
            del self._cached[block]
        self._references[block] += 1

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        self._forget(block)
        self._free.append(block)
        self.statistics.evictions += 1

    def _forget(self, block: int) -> None:
        address = self._address[block]
        self._address[block] = None
        if address is not None and self._holder.get(address) == block:
            del self._holder[address]


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
