"""What DeepSpeed's replay allocates on: a GPU with streams, and the host's pinned memory. In: events. Out: peaks."""

from bigqa.memory.allocator import CachingAllocator
from bigqa.memory.events import CATEGORIES, Category
from bigqa.memory.host import pinned_block

MAIN, REDUCING, GATHERING = 0, 1, 2
"""Streams. torch's allocator never gives a block of one to another."""
SCALAR = 8


class Device:
    """Allocates as torch does, and knows what each block is for."""

    def __init__(self) -> None:
        self.allocator = CachingAllocator()
        self.pinned_bytes = self.host_bytes = 0
        """Of the host, and what is not pinned beside it."""
        self.phase = "start"
        self._blocks: dict[int, tuple[Category, int, str]] = {}
        self._count = 0
        self._live: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
        self._log: list[tuple[int, Category | None]] = []
        """Each event: a new block and what it is for, or a block that is freed."""
        self._peak = 0
        """Events until the peak, and what was there."""
        self._peak_phase = ""

    def new(self, size_bytes: int, category: Category, what: str = "", stream: int = MAIN) -> int:
        """Allocate; return the block. An empty tensor has none, and is 0."""
        if size_bytes <= 0:
            return 0
        self._count += 1
        key, before = self._count, self.allocator.peak_allocated_bytes
        self.allocator.allocate(key, size_bytes, stream)
        self._blocks[key] = (category, size_bytes, what)
        self._log.append((key, category))
        if self.allocator.peak_allocated_bytes > before:
            self._peak, self._peak_phase = len(self._log), self.phase
        return key

    def free(self, *keys: int) -> None:
        """Free blocks."""
        for key in keys:
            if key:
                self.allocator.free(key)
                self._log.append((key, None))

    def passing(self, size_bytes: int, stream: int = MAIN) -> None:
        """Allocate and free."""
        self.free(self.new(size_bytes, "temporaries", "", stream))

    def mark(self, key: int, category: Category) -> None:
        """Say what a block is for from the beginning."""
        self._blocks[key] = (category, *self._blocks[key][1:])

    def empty_cache(self) -> None:
        """Give back what is free."""
        self.allocator.give_back()

    def pin(self, size_bytes: int) -> None:
        """Pin memory of the host: kept, or kept for the next who asks."""
        self.pinned_bytes += pinned_block(size_bytes)

    @property
    def peak_phase(self) -> str:
        """When most was allocated."""
        return self._peak_phase

    def at_peak(self) -> tuple[dict[str, int], list[tuple[str, int]]]:
        """Return what was there at the peak by category, and what passes: operation and bytes."""
        live: set[int] = set()
        for key, category in self._log[: self._peak]:
            if category is None:
                live.discard(key)
            else:
                live.add(key)
        found: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        passing = []
        for key in live:
            category, size, what = self._blocks[key]
            found[category] += -(-size // 512) * 512
            if category in ("activations", "temporaries"):
                passing.append((what, size))
        return found, passing
