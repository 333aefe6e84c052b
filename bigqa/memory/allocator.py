"""A model of torch's CUDA caching allocator. In: allocations and frees. Out: bytes reserved on the device, and peaks.

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11-2.13, defaults (no expandable segments, no limit on splits).
Each stream has blocks of its own. Requests up to 1 MiB come from segments of 2 MiB, up to 10 MiB from segments of
20 MiB, larger ones from a segment of their own, rounded to 2 MiB. The smallest free block that fits is taken, and split
where enough is left over.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass

MIB = 2**20
MIN_BLOCK = 512
SMALL_SIZE = 1 * MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
MIN_LARGE_ALLOCATION = 10 * MIB
ROUND_LARGE = 2 * MIB


class OutOfMemory(Exception):
    """The limit is reached, and no cached segment can be given back."""


@dataclass(slots=True, eq=False)
class Block:
    """A stretch of a segment, in use or free."""

    address: int
    size: int
    pool: tuple[int, bool]
    """Its stream, and whether it is of small blocks."""
    free: bool = False
    before: "Block | None" = None
    after: "Block | None" = None


class CachingAllocator:
    """Allocates and frees as torch does. Bytes."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.allocated_bytes = self.reserved_bytes = 0
        self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self._used: dict[int, Block] = {}
        self._free: dict[tuple[int, bool], list[tuple[int, int, Block]]] = defaultdict(list)
        self._next_address = 0

    def allocate(self, key: int, size_bytes: int, stream: int = 0) -> None:
        """Allocate under a key, for a stream. Raises: OutOfMemory."""
        size = max(MIN_BLOCK, -(-size_bytes // MIN_BLOCK) * MIN_BLOCK)
        small = size <= SMALL_SIZE
        pool = stream, small
        block = self._best_fit(size, pool) or self._new_segment(size, pool)
        left = block.size - size
        if left >= MIN_BLOCK if small else left > SMALL_SIZE:
            self._split(block, size)
        self._used[key] = block
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def free(self, key: int) -> None:
        """Free what was allocated under a key, and join it with free neighbours."""
        block = self._used.pop(key)
        self.allocated_bytes -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._forget(neighbour)
                self._join(block, neighbour)
        self._keep(block)

    def give_back(self) -> None:
        """Return every segment that is free as a whole to the device, as `empty_cache` does."""
        for pool in self._free.values():
            whole = [entry for entry in pool if entry[2].before is None and entry[2].after is None]
            for entry in whole:
                pool.remove(entry)
                self.reserved_bytes -= entry[0]

    def _best_fit(self, size: int, key: tuple[int, bool]) -> Block | None:
        pool = self._free[key]
        index = bisect_left(pool, (size, -1))
        if index == len(pool):
            return None
        block = pool.pop(index)[2]
        block.free = False
        return block

    def _new_segment(self, size: int, pool: tuple[int, bool]) -> Block:
        if pool[1]:
            segment = SMALL_SEGMENT
        elif size < MIN_LARGE_ALLOCATION:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // ROUND_LARGE) * ROUND_LARGE
        if self.limit_bytes is not None and self.reserved_bytes + segment > self.limit_bytes:
            self.give_back()
            if self.reserved_bytes + segment > self.limit_bytes:
                raise OutOfMemory(f"{segment} bytes more than {self.reserved_bytes} of {self.limit_bytes}")
        self.reserved_bytes += segment
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        block = Block(self._next_address, segment, pool)
        self._next_address += segment + 1  # segments never touch
        return block

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size - size, block.pool, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        self._keep(rest)

    def _join(self, block: Block, neighbour: Block) -> None:
        first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
        block.address, block.size = first.address, first.size + second.size
        block.before, block.after = first.before, second.after
        if block.before is not None:
            block.before.after = block
        if block.after is not None:
            block.after.before = block

    def _keep(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.pool], (block.size, block.address, block))

    def _forget(self, block: Block) -> None:
        pool = self._free[block.pool]
        pool.pop(bisect_left(pool, (block.size, block.address)))
