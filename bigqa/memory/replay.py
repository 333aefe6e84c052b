"""The first steps of a run, put through the allocator as they come. In: a traced step, sizes. Out: peaks.

A trace is of a step that finds the optimizer's state there. What torch's allocator reserves hangs on what came before:
weights and masters are placed, a first step runs without states, which its update makes, and the second is the trace's.
Where gradients are accumulated, the micro-batch before leaves them behind: what the trace adds to them and frees.
"""

import itertools
from collections.abc import Sequence

from bigqa.memory.allocator import CachingAllocator
from bigqa.memory.events import BEFORE, Event, Stream
from bigqa.memory.parallel import SENT_AT_ONCE, Averaging

WORKSPACE = "workspace"
FIGURES, FIGURE_BYTES = 3, 8
"""Of a step, summed over processes as it ends (`engine.loop.fit`): the loss and whether to stop, in three tensors."""


def peaks(
    stream: Stream, sizes: Sequence[int], averaging: Averaging | None = None, *, keeps_sent: bool = False,
    keeps_first: bool = False, limit_bytes: int | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Return the most bytes allocated and reserved in two steps.

    Args:
        sizes: of each allocation of the stream; zero where the card has none, and for frees.
        averaging: of several processes.
        keeps_sent: whether all flat copies stay until the first step's bucket is made.
        keeps_first: whether the first step's bucket stays beside the others.
        limit_bytes: what the card has for torch.

    Raises: OutOfMemory.
    """
    return _Run(stream, sizes, averaging, (keeps_sent, keeps_first), limit_bytes).peaks()


class _Run:
    def __init__(
        self, stream: Stream, sizes: Sequence[int], averaging: Averaging | None, keeps: tuple[bool, bool],
        limit_bytes: int | None,
    ) -> None:  # fmt: skip
        self.stream, self.sizes = stream, sizes
        self.averaging, (self.keeps_sent, self.keeps_first) = averaging, keeps
        self.events = stream.events
        self.allocator = CachingAllocator(limit_bytes)
        self.keys: dict[int, int] = {}
        """Storage of the trace -> what it is now to the allocator."""
        self.numbers = itertools.count()
        self.begin = next((i for i, event in enumerate(self.events) if event.phase not in BEFORE), len(self.events))
        self.update = next((i for i, event in enumerate(self.events) if event.phase == "clip"), len(self.events))
        self.size_of = {event.storage: sizes[i] for i, event in enumerate(self.events) if event.size_bytes}
        self.states = dict(stream.states)
        self.gradients = set(stream.added_to.values())
        self.of_update = {event.storage for event in self.events if event.size_bytes and event.of_update}
        self.workspaces: set[str] = set()

    def peaks(self) -> tuple[int, int]:
        self._place()
        first = self._wrap(self.averaging) if self.averaging is not None else None
        for step in range(2):
            if step and first is not None and self.averaging is not None:
                if not self.keeps_first:
                    self.allocator.free(first)
                self._blocks(self.averaging.rebuilt)
            kept = set(self.keys)
            if self.gradients:
                self._first_micro_batch()
            self._through(self.begin, len(self.events), makes_states=step == 0)
            self._end_step(kept | {one for made in self.states.values() for one in made})
        return self.allocator.peak_allocated_bytes, self.allocator.peak_reserved_bytes

    def _end_step(self, kept: set[int]) -> None:
        """Sum the step's figures up, let go of the rest and of its micro-batches, and take the next step's."""
        figures = self._blocks([FIGURE_BYTES] * FIGURES)
        for storage in [*(set(self.keys) - kept), *self.stream.batch]:
            self._free(storage)
        for key in figures:
            self.allocator.free(key)
        for storage in self.stream.batch:
            self._allocate(storage)

    def _place(self) -> None:
        """Place what is there before the first step: weights, then masters."""
        gone = {event.storage for event in self.events[: self.begin] if not event.size_bytes}
        later = gone | self.gradients | {storage for made in self.states.values() for storage in made}
        there = [e.storage for e in self.events[: self.begin] if e.size_bytes and e.storage not in later]
        turn = {storage: place for place, storage in enumerate(self.stream.placed)}
        for storage in sorted(there, key=lambda one: turn.get(one, len(turn))):
            self._allocate(storage)

    def _wrap(self, averaging: Averaging) -> int:
        """Send the weights to the other processes, and make the first step's bucket; return that."""
        sent: list[int] = []
        for size in averaging.sent:
            if len(sent) == SENT_AT_ONCE and not self.keeps_sent:
                self.allocator.free(sent.pop(0))
            sent += self._blocks([size])
        first = self._blocks([averaging.first]) if self.keeps_sent else []
        for key in sent:
            self.allocator.free(key)
        return (first or self._blocks([averaging.first]))[0]

    def _blocks(self, sizes: Sequence[int]) -> list[int]:
        """Allocate what is no storage of the trace."""
        keys = [next(self.numbers) for _ in sizes]
        for key, size in zip(keys, sizes, strict=True):
            self.allocator.allocate(key, size)
        return keys

    def _first_micro_batch(self) -> None:
        """Run a micro-batch that finds no gradients: what would be added to them becomes them."""
        for index in range(self.begin, self.update):
            event = self.events[index]
            if event.storage in self.of_update or event.storage in self.gradients:
                continue
            if event.size_bytes:
                self._begin(event)
            elif event.storage in self.stream.added_to:
                self.keys[self.stream.added_to[event.storage]] = self.keys.pop(event.storage)
            else:
                self._free(event.storage)

    def _through(self, begin: int, end: int, *, makes_states: bool) -> None:
        for index in range(begin, end):
            if makes_states:
                for storage in self.states.get(index, ()):
                    self._allocate(storage)
            event = self.events[index]
            if event.size_bytes:
                self._begin(event)
            else:
                self._free(event.storage)

    def _begin(self, event: Event) -> None:
        if event.operation == WORKSPACE:
            if event.phase not in self.workspaces:
                self.workspaces.add(event.phase)
                self.allocator.allocate(next(self.numbers), self.size_of[event.storage])
        else:
            self._allocate(event.storage)

    def _allocate(self, storage: int) -> None:
        if self.size_of[storage]:
            self.keys[storage] = next(self.numbers)
            self.allocator.allocate(self.keys[storage], self.size_of[storage])

    def _free(self, storage: int) -> None:
        key = self.keys.pop(storage, None)
        if key is not None:
            self.allocator.free(key)
