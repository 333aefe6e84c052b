"""Peaks of a model of any depth and micro-batch, from four small traces. In: traces. Out: peaks per phase and category.

A stream of events does not change with the micro-batch, and the size of each storage is a line in it. Layers repeat, so
what a phase holds at its peak is a line in the number of layers. Both were checked against whole traces, see the tests.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigqa.engine.pinned import whole_pages
from bigqa.machine.heap import TIGHT_BYTES
from bigqa.memory.cards import A100, Card
from bigqa.memory.events import BEFORE, CATEGORIES, Stream, moved_on
from bigqa.memory.replay import peaks

Trace = Callable[[int, int], Stream]
"""(layers, micro-batch) -> stream."""
LAYERS = (2, 3)
BATCHES = (2, 3)
ROUNDING = 512
NUM_LARGEST = 5
HUGE_PAGE = 2**21
"""Of Linux with pages of 4 KiB. A block begins where it may: what lies around whole huge pages comes in small ones."""
Vector = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Footprint:
    """What one step of one process holds and does."""

    allocated_bytes: int
    reserved_bytes: int
    phase: str
    by_category: dict[str, int]
    largest: tuple[tuple[str, int], ...]
    flops: int
    moved_bytes: int
    operations: int
    step_bytes: int
    offloaded_bytes: int = 0
    """Kept on the host for the backward pass."""
    pinned_bytes: int = 0
    """What pinned memory takes for that."""
    managed_bytes: int = 0
    """Of paged optimizers' states."""
    batched_flops: int = 0
    """The part of the FLOPs that is attention's."""
    drawn: int = 0
    """Elements of dropout, on a CPU."""
    fresh: tuple[int, int] = (0, 0)
    """Of a micro-batch's blocks so large that a CPU's heap gets each from the kernel: bytes in huge and small pages."""
    step_fresh: tuple[int, int] = (0, 0)
    """The same of the update."""
    kept_bytes: int = 0
    """Of streamed layers: host memory beside the pinned."""
    arriving_bytes: int = 0
    """What crosses the link to the device in a step of all its micro-batches, where layers are streamed."""
    leaving_bytes: int = 0
    disk_bytes: int = 0
    """Taken of a disk, where weights or states of streamed layers lie there."""
    read_bytes: int = 0
    """Of the disk in a step."""
    weights_read_bytes: int = 0
    """The part of what is read that is weights', for the passes."""
    written_bytes: int = 0
    swing_bytes: int = 0
    """Held at most during a micro-batch, beyond what was held before it: on a CPU the kernel's until then."""
    least: tuple[int, int] | None = None
    """Allocated and reserved where chance is kind (`memory.parallel`, `memory.stream`); none: there is none in it."""


@dataclass(frozen=True)
class _Point:
    """A trace at one depth, scaled to one micro-batch."""

    stream: Stream
    sizes: Vector
    """Rounded, by event; of the storage that is freed for a free."""
    live: Vector
    """Bytes that are live after each event."""
    phases: dict[str, tuple[int, int]]
    """First event of each phase, and the one after its last."""
    allocated: int
    """At most, with what blocks hold that is too little to be split off."""
    reserved: int
    work: tuple[int, ...]

    @property
    def marks(self) -> list[tuple[str, int]]:
        """What tells one event from another: its operation, and its size."""
        return [(event.operation, int(size)) for event, size in zip(self.stream.events, self.sizes, strict=True)]

    @property
    def gap(self) -> int:
        """Bytes reserved beyond the allocated peak."""
        return self.reserved - self.allocated

    @property
    def unsplit(self) -> int:
        """Bytes allocated beyond those that were asked for."""
        return self.allocated - int(self.live[self.first :].max(initial=0))

    @property
    def first(self) -> int:
        """The first event of the step itself."""
        return min((begin for phase, (begin, _) in self.phases.items() if phase not in BEFORE), default=0)


class NoLineError(Exception):
    """A step does other things at another micro-batch or depth: no line can be drawn through two."""


class Scaling:
    """Traces once, answers for every micro-batch. `traced_layers`: the full depth twice, where layers do not repeat."""

    def __init__(
        self, trace: Trace, num_layers: int, traced_layers: tuple[int, int] = LAYERS, *, made_on_host: bool = False
    ) -> None:
        self.num_layers = num_layers
        self.traced_layers = traced_layers
        self.made_on_host = made_on_host
        low, high = traced_layers
        self.pairs = [_pair(trace, low)]
        self.pairs.append(_pair(trace, high) if high != low else self.pairs[0])
        self._known: dict[tuple[int, Card], Footprint] = {}

    def at(self, micro_batch: int, card: Card = A100) -> Footprint:
        """Return the footprint of a micro-batch."""
        if (micro_batch, card) not in self._known:
            self._known[micro_batch, card] = self._at(micro_batch, card)
        return self._known[micro_batch, card]

    def _at(self, micro_batch: int, card: Card) -> Footprint:
        # On a CPU nothing is reserved: there is no allocator to replay.
        low, high = (_point(pair, micro_batch, card, replayed=self.made_on_host) for pair in self.pairs)
        allocated, phase, low_at, high_at = max(
            self._phase_peak(low, high, phase) for phase in high.phases if not (self.made_on_host and phase in BEFORE)
        )
        low_categories, high_categories = (_categories(p, at) for p, at in ((low, low_at), (high, high_at)))
        work = done_by(self._line(a, b) for a, b in zip(low.work, high.work, strict=True))
        if self.made_on_host:
            allocated += max(low.unsplit, high.unsplit)
        return Footprint(
            allocated_bytes=allocated,
            # What is reserved beyond the peak hardly changes with depth: segments are reused from layer to layer.
            reserved_bytes=allocated + max(low.gap, high.gap),
            phase=phase,
            by_category={name: self._line(low_categories[name], high_categories[name]) for name in CATEGORIES},
            largest=_largest(high, high_at),
            **work,
        )

    def _phase_peak(self, low: _Point, high: _Point, phase: str) -> tuple[int, str, int, int]:
        """Return a phase's peak at full depth, and the events of both traces that stand for it.

        Events are matched from the phase's start and from its end. What lies between are layers like the others, and
        from layer to layer the live bytes rise or fall throughout, so the most is found in an outer one; unless a phase
        goes through the layers twice, with something between: adapters are added, then all weights are rounded. There
        the most of one trace is matched with the most of the other.
        """
        (a, a_end), (b, b_end) = low.phases[phase], high.phases[phase]
        first, second = low.marks[a:a_end], high.marks[b:b_end]
        same, same_back = _common(first, second), _common(first[::-1], second[::-1])
        pairs = [(a + i, b + i) for i in range(same)] + [(a_end - 1 - i, b_end - 1 - i) for i in range(same_back)]
        pairs += _middle(low, high, (a + same, a_end - same_back), (b + same, b_end - same_back))
        if not pairs:
            raise NoLineError("the events of a step depend on the depth")
        places = np.array(pairs).T
        values = low.live[places[0]] + (high.live[places[1]] - low.live[places[0]]) * self._steps()
        best = int(np.argmax(values))
        return int(values[best]), phase, int(places[0][best]), int(places[1][best])

    def _steps(self) -> int:
        first, second = self.traced_layers
        return (self.num_layers - first) // (second - first) if second != first else 0

    def _line(self, low: int, high: int) -> int:
        return low + (high - low) * self._steps()


def done_by(work: Iterable[int]) -> dict[str, Any]:
    """Return what a point's work is in a `Footprint`."""
    flops, moved, operations, step_bytes, offloaded, batched, drawn, pinned, managed, swing, *fresh = work
    return {
        "flops": flops,
        "moved_bytes": moved,
        "operations": operations,
        "step_bytes": step_bytes,
        "offloaded_bytes": offloaded,
        "pinned_bytes": pinned,
        "managed_bytes": managed,
        "batched_flops": batched,
        "drawn": drawn,
        "swing_bytes": swing,
        "fresh": (fresh[0], fresh[1]),
        "step_fresh": (fresh[2], fresh[3]),
    }


def work_of(stream: Stream, card: Card) -> dict[str, Any]:
    """Return what one trace comes to beside its peaks, as a `Footprint` has it."""
    return done_by(_point([stream, stream], BATCHES[0], card, replayed=False).work)


def _pair(trace: Trace, layers: int) -> list[Stream]:
    return [trace(layers, batch) for batch in BATCHES]


def _common(one: list[Any], other: list[Any]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _middle(low: _Point, high: _Point, inside: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the events with the most live bytes between those that match, if they are of one kind."""
    if inside[0] >= inside[1] or other[0] >= other[1]:
        return []
    at, other_at = inside[0] + int(low.live[slice(*inside)].argmax()), other[0] + int(high.live[slice(*other)].argmax())
    return [(at, other_at)] if low.marks[at] == high.marks[other_at] else []


def _point(pair: list[Stream], micro_batch: int, card: Card, *, replayed: bool) -> _Point:
    pair = [moved_on(stream, card) for stream in pair]
    stream, exact = pair[0], sizes_at(pair, micro_batch, card)
    size_of: dict[int, int] = {}
    sizes = -(-exact // ROUNDING) * ROUNDING
    for index, event in enumerate(stream.events):
        if event.size_bytes:
            size_of[event.storage] = int(sizes[index])
        else:
            sizes[index] = size_of[event.storage]
    signs = np.array([1 if event.size_bytes else -1 for event in stream.events])
    names = [event.phase for event in stream.events]
    phases = {name: (names.index(name), len(names) - names[::-1].index(name)) for name in dict.fromkeys(names)}
    live = np.cumsum(sizes * signs)
    allocated, reserved = peaks(stream, exact.tolist()) if replayed else (int(live.max()),) * 2
    return _Point(
        stream=stream,
        sizes=sizes,
        live=live,
        phases=phases,
        allocated=allocated,
        reserved=reserved,
        work=(*_work(pair, micro_batch), _swing(live, phases), *_fresh(pair, exact, micro_batch)),
    )


def sizes_at(pair: list[Stream], micro_batch: int, card: Card) -> Vector:
    """Return the size of each allocation at a micro-batch: a line through two traces, or what a rule makes of lines."""
    first, second = (np.array([event.size_bytes for event in stream.events], np.int64) for stream in pair)
    if len(first) != len(second):
        raise NoLineError("the events of a step depend on the micro-batch")
    sizes = first + (second - first) * (micro_batch - BATCHES[0])
    sizes = np.where(first > 0, np.maximum(sizes, 1), 0)
    for index, event in enumerate(pair[0].events):
        if event.scratch is not None:
            other = pair[1].events[index].scratch
            assert other is not None
            lines = zip(event.scratch.shape, other.shape, strict=True)
            shape = tuple(a + (b - a) * (micro_batch - BATCHES[0]) for a, b in lines)
            sizes[index] = event.scratch.size(card, shape)
    return sizes


def _live_events(point: _Point, at: int) -> dict[int, int]:
    """Return storage -> the event that allocated it, of all that is live after event `at`."""
    live: dict[int, int] = {}
    for index, event in enumerate(point.stream.events[: at + 1]):
        if event.size_bytes:
            live[event.storage] = index
        else:
            del live[event.storage]
    return live


def _categories(point: _Point, at: int) -> dict[str, int]:
    found: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
    for storage, index in _live_events(point, at).items():
        found[point.stream.categories[storage]] += int(point.sizes[index])
    return found


def _largest(point: _Point, at: int) -> tuple[tuple[str, int], ...]:
    live = _live_events(point, at)
    passing = [
        index for storage, index in live.items() if point.stream.categories[storage] in ("activations", "temporaries")
    ]
    largest = sorted(passing, key=lambda index: -int(point.sizes[index]))[:NUM_LARGEST]
    return tuple((point.stream.events[index].operation, int(point.sizes[index])) for index in largest)


def _work(pair: list[Stream], micro_batch: int) -> tuple[int, ...]:
    def line(first: int, second: int) -> int:
        return first + (second - first) * (micro_batch - BATCHES[0])

    a, b = pair
    return (
        line(a.flops, b.flops),
        line(a.moved_bytes, b.moved_bytes),
        line(a.operations, b.operations),
        a.step_bytes,
        line(a.offloaded_bytes, b.offloaded_bytes),
        line(a.batched_flops, b.batched_flops),
        line(a.drawn, b.drawn),
        _pinned(a.offloaded, b.offloaded, micro_batch),
        a.managed_bytes,
    )


def _pinned(first: tuple[int, ...], second: tuple[int, ...], micro_batch: int) -> int:
    """Return what pinned memory takes for what is sent to the host at a micro-batch."""
    if len(first) != len(second):
        raise NoLineError("what is sent to the host depends on the micro-batch")
    return sum(whole_pages(a + (b - a) * (micro_batch - BATCHES[0])) for a, b in zip(first, second, strict=True))


def _fresh(pair: list[Stream], sizes: Vector, micro_batch: int) -> list[int]:
    """Return the bytes of large blocks that a micro-batch makes, and that the update makes: in huge and small pages."""
    found = [0, 0, 0, 0]
    for one, other, size in zip(pair[0].events, pair[1].events, sizes.tolist(), strict=True):
        if size <= TIGHT_BYTES or one.phase in BEFORE:
            continue
        of_micro = not one.of_update
        times = one.repeats + (other.repeats - one.repeats) * (micro_batch - BATCHES[0]) if of_micro else one.repeats
        huge = max(0, size // HUGE_PAGE - 1) * HUGE_PAGE
        place = 0 if of_micro else 2
        found[place] += times * huge
        found[place + 1] += times * (size - huge)
    return found


def _swing(live: Vector, phases: dict[str, tuple[int, int]]) -> int:
    """Return how far what is live rises in a micro-batch."""
    if "forward" not in phases or "backward" not in phases:
        return 0
    begin, end = phases["forward"][0], phases["backward"][1]
    return int(live[begin:end].max()) - int(live[begin - 1])
