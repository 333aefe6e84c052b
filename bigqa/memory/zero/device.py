"""What DeepSpeed's replay allocates on: a GPU with streams, and the host's pinned memory. In: events. Out: peaks."""

from bigqa.memory.allocator import CachingAllocator
from bigqa.memory.events import CATEGORIES, Category, Event, Stream
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
        self._log: list[tuple[int, bool, str]] = []
        """Each event: a block, whether it is new or freed, and the phase."""
        self._step = 0
        """Events before the last step."""
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
        self._log.append((key, True, self.phase))
        if self.allocator.peak_allocated_bytes > before:
            self._peak, self._peak_phase = len(self._log), self.phase
        return key

    def free(self, *keys: int) -> None:
        """Free blocks."""
        for key in keys:
            if key:
                self.allocator.free(key)
                self._log.append((key, False, self.phase))

    def passing(self, size_bytes: int, stream: int = MAIN) -> None:
        """Allocate and free."""
        self.free(self.new(size_bytes, "temporaries", "", stream))

    def begin_step(self) -> None:
        """Say that a step begins."""
        self._step = len(self._log)

    def last_step(self) -> Stream:
        """Return what the last step did, and before it, as set up, what it found."""
        events = []
        for at, (key, is_new, phase) in enumerate(self._log):
            _, size, what = self._blocks[key]
            events.append(Event(key, size if is_new else 0, "ready" if at < self._step else phase, what))
        return Stream(events=events, categories={key: block[0] for key, block in self._blocks.items()})

    def empty_cache(self, *, forget: bool = False) -> None:
        """Give back what is free. `forget`: the peak is what is there from now on."""
        allocator = self.allocator
        allocator.give_back()
        if forget:
            allocator.peak_allocated_bytes = allocator.allocated_bytes
            allocator.peak_reserved_bytes = allocator.reserved_bytes
            self._peak, self._peak_phase = len(self._log), self.phase

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
        for key, is_new, _ in self._log[: self._peak]:
            if is_new:
                live.add(key)
            else:
                live.discard(key)
        found: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        passing = []
        for key in live:
            category, size, what = self._blocks[key]
            found[category] += -(-size // 512) * 512
            if category in ("activations", "temporaries"):
                passing.append((what, size))
        return found, passing
