"""Random engine life over a tiny pool of blocks, with a naive model that remembers what was written where."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hasten.cache.blocks import BlockManager
from hasten.core.errors import OutOfBlocks

JUNK = -1


@dataclass
class Table:
    """A sequence as the engine sees it. ``truth[i]`` stands for the keys and values of position i: they depend on the tenant
    and on all tokens up to i."""

    tenant: str
    tokens: list[int]
    truth: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, tenant: str, tokens: list[int]) -> Table:
        table = cls(tenant, [], [])
        table.extend(tokens)
        return table

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            self.truth.append(hash((self.truth[-1] if self.truth else self.tenant, token)))
            self.tokens.append(token)


class Machine:
    """Random engine life over a tiny pool. Every operation ends with the integrity check and a look at the contents."""

    def __init__(self, manager: BlockManager, seed: int) -> None:
        self.manager = manager
        self.size = manager.block_size
        self.random = random.Random(seed)
        self.content = [[JUNK] * self.size for _ in range(manager.num_blocks)]
        self.live: list[Table] = []
        self.done: dict[str, int] = {}
        self.refusals = 0
        self.longest = (manager.num_blocks - 1) * self.size
        self.operations = {
            self.start: 4,
            self.compute: 12,
            self.publish: 6,
            self.draft: 3,
            self.fork: 2,
            self.finish: 2,
            self.preempt: 1,
            self.roll_back: 1,
        }

    def run(self, operations: int) -> None:
        chosen = self.random.choices(list(self.operations), list(self.operations.values()), k=operations)
        for operation in chosen:
            try:
                operation()
            except OutOfBlocks:
                self.refusals += 1
                self.check()  # nothing may have changed
                self.preempt()
            self.done[operation.__name__] = self.done.get(operation.__name__, 0) + 1
            self.check()
            if self.random.random() < 0.001:
                self.manager.clear_cache()
                self.check()

    def check(self) -> None:
        self.manager.check_integrity([table.blocks for table in self.live])
        held = {block for table in self.live for block in table.blocks}
        assert self.manager.used == len(held)
        for table in self.live:
            written = [value for block in table.blocks for value in self.content[block]]
            assert written[: table.computed] == table.truth[: table.computed], "a sequence reads what is not its own"

    def pick(self) -> Table | None:
        return self.random.choice(self.live) if self.live else None

    def start(self) -> None:
        if len(self.live) >= 5:
            return
        length = self.random.randint(1, self.longest // 2)
        seed = random.Random(self.random.randrange(6))  # few different prompts: many shared prefixes
        tokens = [seed.randrange(2) for _ in range(length)]
        table = Table.of(self.random.choice(["", "", "a"]), tokens)
        self.look_up(table)
        self.live.append(table)

    def look_up(self, table: Table) -> None:
        limit = self.random.choice([len(table.tokens) - 1, len(table.tokens), len(table.tokens) // 2])
        table.blocks = self.manager.match_prefix(table.tokens, table.tenant, limit)
        table.computed = len(table.blocks) * self.size
        assert table.computed <= limit
        self.manager.count(limit, len(table.blocks))

    def reserve(self, table: Table, positions: int) -> None:
        """Make room for ``positions`` and make everything from the first uncomputed position on writable."""
        steps = [self.make_room, self.make_writable]
        for step in self.random.sample(steps, 2):  # fresh blocks are writable anyway, so the order is free
            step(table, positions)

    def make_room(self, table: Table, positions: int) -> None:
        missing = -(-positions // self.size) - len(table.blocks)
        for block in self.manager.allocate(max(missing, 0)):
            self.content[block] = [JUNK] * self.size
            table.blocks.append(block)

    def make_writable(self, table: Table, _: int) -> None:
        for source, destination in self.manager.make_writable(table.blocks, table.computed // self.size):
            self.content[destination] = list(self.content[source])

    def compute(self) -> None:
        table = self.pick()
        if table is None:
            return
        if not table.blocks:
            self.look_up(table)  # it was preempted
        if table.computed == len(table.tokens):
            if len(table.tokens) >= self.longest:
                return
            table.extend([self.random.randrange(2) for _ in range(self.random.randint(1, 3))])
        upto = self.random.randint(table.computed + 1, len(table.tokens))
        self.reserve(table, upto)
        for position in range(table.computed, upto):
            self.content[table.blocks[position // self.size]][position % self.size] = table.truth[position]
        table.computed = upto

    def draft(self) -> None:
        """Tree rows are written behind the computed positions and rejected."""
        table = self.pick()
        if table is None:
            return
        self.reserve(table, table.computed + 3)
        for position in range(table.computed, table.computed + 3):
            self.content[table.blocks[position // self.size]][position % self.size] = JUNK

    def publish(self) -> None:
        table = self.pick()
        if table is not None:
            self.manager.publish(table.blocks, table.tokens, table.computed, table.tenant)

    def fork(self) -> None:
        table = self.pick()
        if table is not None and len(self.live) < 5:
            blocks = self.manager.fork(table.blocks)
            self.live.append(Table(table.tenant, list(table.tokens), list(table.truth), table.computed, blocks))

    def finish(self) -> None:
        table = self.pick()
        if table is not None:
            self.live.remove(table)
            self.manager.free(table.blocks)

    def preempt(self) -> None:
        table = self.pick()
        if table is not None:
            self.manager.free(table.blocks)
            table.blocks, table.computed = [], 0

    def roll_back(self) -> None:
        """The engine never does this today; the manager must bear it: positions are declared uncomputed and written again."""
        table = self.pick()
        if table is not None:
            table.computed = self.random.randint(0, table.computed)
