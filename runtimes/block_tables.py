"""Which blocks of a paged cache hold the tokens of which row. Blocks are numbers here: who holds the memory is told to grow it.

A block has room for BLOCK tokens (`size`), in every layer of its pool. A row's tokens are in the blocks of its table, in order;
all but the last are full. Rows may share blocks that begin alike: a block that several hold is copied before one writes to it.
"""

from collections.abc import Callable

__all__ = ["Pool", "Table"]


class Pool:
    """The blocks of some layers, numbered from 0; `grow` makes their memory hold so many, keeping what it holds."""

    def __init__(self, grow: Callable[[int], None], copy: Callable[[int, int], None]) -> None:
        """copy: block to block."""
        self._grow, self._copy = grow, copy
        self._holders: list[int] = []  # of each block, how many tables have it
        self._free: list[int] = []

    @property
    def blocks(self) -> int:
        """How many there is memory for."""
        return len(self._holders)

    @property
    def used(self) -> int:
        """How many some table has."""
        return len(self._holders) - len(self._free)

    def reserve(self, count: int) -> None:
        """Makes room for `count` more blocks: by a half more than there are, so that copies are few, or by what is missing."""
        missing = count - len(self._free)
        if missing > 0:
            first = len(self._holders)
            total = first + max(missing, first // 2)
            self._grow(total)
            self._holders += [0] * (total - first)
            self._free += reversed(range(first, total))

    def shrink(self, keep: int) -> None:
        """Gives the memory back but for the first `keep` blocks. No table may have another."""
        self._holders, self._free = [1] * keep, []
        self._grow(keep)

    def take(self) -> int:
        """A block that nobody has. One must have been reserved."""
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def share(self, block: int) -> int:
        """One holder more."""
        self._holders[block] += 1
        return block

    def release(self, block: int) -> None:
        """One holder less."""
        self._holders[block] -= 1
        if not self._holders[block]:
            self._free.append(block)

    def own(self, block: int) -> int:
        """The block, or a copy of it where somebody else has it too. One must have been reserved."""
        if self._holders[block] == 1:
            return block
        mine = self.take()
        self._copy(block, mine)
        self.release(block)
        return mine


class Table:
    """The blocks of one row in one pool: positions `first` (a block's beginning) to `end`, counted from the row's first token."""

    def __init__(self, pool: Pool, size: int) -> None:
        self.pool, self.size = pool, size
        self.blocks: list[int] = []
        self.first = self.end = 0

    def missing(self, count: int) -> int:
        """How many blocks `append` of so many tokens takes, with one for a shared last block."""
        return -(-(self.end + count - self.first) // self.size) - len(self.blocks) + 1

    def append(self, count: int) -> None:
        """Makes room for `count` tokens more. What they need was reserved."""
        if self.end % self.size:
            self.blocks[-1] = self.pool.own(self.blocks[-1])
        self.end += count
        while len(self.blocks) * self.size < self.end - self.first:
            self.blocks.append(self.pool.take())

    def drop_last(self, count: int) -> None:
        """Forgets the last `count` tokens, which it has."""
        self.end -= count
        while (len(self.blocks) - 1) * self.size >= self.end - self.first and self.blocks:
            self.pool.release(self.blocks.pop())

    def keep_last(self, keep: int) -> None:
        """Forgets whole blocks in which none of the last `keep` tokens is."""
        forgotten = max(self.end - self.first - keep, 0) // self.size
        for block in self.blocks[:forgotten]:
            self.pool.release(block)
        del self.blocks[:forgotten]
        self.first += forgotten * self.size

    def clear(self) -> None:
        """Forgets everything."""
        for block in self.blocks:
            self.pool.release(block)
        self.blocks.clear()
        self.first = self.end = 0

    def shared(self) -> "Table":
        """Another row that begins as this one, in the same blocks."""
        twin = Table(self.pool, self.size)
        twin.blocks = [self.pool.share(block) for block in self.blocks]
        twin.first, twin.end = self.first, self.end
        return twin
