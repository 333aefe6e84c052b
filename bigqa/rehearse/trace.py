"""Torch's record of allocations, told apart. In: its events, a run's marks and tags. Out: every allocation, by kind.

Allocated memory counts until its free is asked for, and each block with what torch rounds it up to: as in torch's own
figure, to the byte.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigqa.units import MIB

KINDS = ("weights", "optimizer", "gradients", "activations", "temporaries", "workspaces", "other")
TAGGED = ("weights", "optimizer", "gradients")
"""Those that the program itself holds."""
ROUNDING = 512
"""torch gives out memory in multiples of this."""
SMALL = MIB
"""Blocks of more come from segments of their own kind, and leave no smaller rest."""
WORKSPACE, WORKSPACE_HOPPER = 8 * MIB + 128 * 1024, 32 * MIB
"""What torch gives cuBLAS for each of its handles and streams, by compute capability (`CUDABlas.cpp`)."""
BUCKETS = "torch/nn/parallel/distributed.py"
"""Where the buckets are made in which DistributedDataParallel reduces gradients: nothing in Python holds them. It calls
the whole forward pass too, so that the innermost line alone tells."""
BACKWARD = "backward"
Place = dict[str, Any]


@dataclass
class Allocation:
    """One block of memory, from when it was given out to when its free was asked for."""

    address: int
    wanted: int
    """Bytes that were asked for."""
    size: int
    """Bytes that it took."""
    begin: int
    """The number of its event."""
    mark: int
    """The phase that it began in: an index of the run's marks."""
    frames: Sequence[Place]
    of_main: bool = True
    """Whether it is of the thread that runs the program, not of autograd's."""
    end: int | None = None
    end_mark: int | None = None
    kind: str = "other"


@dataclass(frozen=True)
class Phase:
    """A stretch of a run."""

    name: str
    step: int
    """From 1; 0: before the first."""


@dataclass
class Trace:
    """What one device held."""

    allocations: list[Allocation]
    phases: list[Phase]
    """Of each mark."""
    mark_of_event: list[int]
    totals: list[int] = field(default_factory=list)
    """Allocated behind each event."""

    @property
    def peak_event(self) -> int:
        """The event behind which the most was allocated."""
        return max(range(len(self.totals)), key=self.totals.__getitem__, default=0)

    def live_at(self, event: int) -> list[Allocation]:
        """Return what was allocated behind an event."""
        return [a for a in self.allocations if a.begin <= event and (a.end is None or a.end > event)]


class Layout:
    """Where torch's segments and blocks lie: a block takes in what is left behind it, if too little to be split off.

    The rule is that of `should_split` in torch's `CUDACachingAllocator.cpp`.
    """

    def __init__(self) -> None:
        self.blocks: list[int] = []
        """Addresses, in order, of what is not free."""
        self.segments: list[int] = []
        self.ends: dict[int, int] = {}

    def take(self, address: int, wanted: int) -> int:
        """Note a block, and return its size."""
        size = max(ROUNDING, -(-wanted // ROUNDING) * ROUNDING)
        at = bisect.bisect(self.blocks, address)
        following = self.blocks[at] if at < len(self.blocks) else None
        self.blocks.insert(at, address)
        number = bisect.bisect(self.segments, address) - 1
        if size <= SMALL or number < 0:
            return size
        end = self.ends[self.segments[number]]
        left = min(end, following or end) - address - size
        return size + left if 0 < left <= SMALL else size

    def follow(self, event: Mapping[str, Any]) -> None:
        """Note what becomes of segments, and what becomes free."""
        address = event.get("addr", 0)
        if event["action"] == "segment_alloc":
            bisect.insort(self.segments, address)
            self.ends[address] = address + event["size"]
        elif event["action"] == "segment_free" and address in self.ends:
            self.segments.remove(address)
            del self.ends[address]
        elif event["action"] == "free_completed":
            at = bisect.bisect_left(self.blocks, address)
            if at < len(self.blocks) and self.blocks[at] == address:
                del self.blocks[at]


def read_trace(
    events: Sequence[Mapping[str, Any]],
    marks: Sequence[tuple[str, int]],
    tags: Mapping[int, Mapping[int, str]],
    capability: tuple[int, int] = (8, 0),
) -> Trace:
    """Return a device's trace with the kind of every allocation.

    Args:
        events: `_snapshot()["device_traces"][device]`.
        marks: (phase, steps done when it began); an allocation's metadata is an index of it.
        tags: what lay at an address when a mark was made.
        capability: of the card.
    """
    phases = name_phases(marks)
    trace = Trace([], phases, [])
    live: dict[int, Allocation] = {}
    layout = Layout()
    total = mark = 0
    for number, event in enumerate(events):
        mark = _mark_of(event, mark, phases)
        address = event.get("addr", 0)  # that memory ran out is told without one
        if event["action"] == "alloc":
            size = layout.take(address, event["size"])
            frames, of_main = event.get("frames", ()), _own_mark(event, phases) is not None
            live[address] = Allocation(address, event["size"], size, number, mark, frames, of_main)
            trace.allocations.append(live[address])
            total += size
        elif event["action"] == "free_requested" and address in live:
            gone = live.pop(address)
            gone.end, gone.end_mark = number, mark
            total -= gone.size
        else:
            layout.follow(event)
        trace.totals.append(total)
        trace.mark_of_event.append(mark)
    for allocation in trace.allocations:
        allocation.kind = _kind(allocation, phases, tags)
    for allocation in _workspaces(trace.allocations, capability):
        allocation.kind = "workspaces"
    return trace


def _workspaces(allocations: Sequence[Allocation], capability: tuple[int, int]) -> list[Allocation]:
    """Return cuBLAS' workspaces: one for each thread at most, which is never freed.

    Its size is all that tells it. Of tensors that are as large, and are still there where memory ran out, the first of
    a thread may stand for it; what the kinds come to is right all the same.
    """
    size = WORKSPACE_HOPPER if capability >= (9, 0) else WORKSPACE
    found: dict[bool, Allocation] = {}
    for allocation in allocations:
        if allocation.wanted == size and allocation.end is None and allocation.kind not in TAGGED:
            found.setdefault(allocation.of_main, allocation)
    return list(found.values())


def name_phases(marks: Sequence[tuple[str, int]]) -> list[Phase]:
    """Return what each mark begins, in words, with the step that it belongs to.

    What comes behind a backward pass is known by what comes next: the clipping of gradients where the step follows.
    """
    found = []
    for number, (name, done) in enumerate(marks):
        following = next((n for n, _ in marks[number + 1 :] if n != name), None)
        if name == "after backward":
            name = "before the step" if following == "optimizer" else "between"
        elif name == "after step":
            name = "between"
        found.append(Phase(name, 0 if name == "set-up" else done + 1))
    return found


def _mark_of(event: Mapping[str, Any], mark: int, phases: Sequence[Phase]) -> int:
    """Return the mark of an event. Of other threads than the main one, autograd's, it has none: the backward pass."""
    own = _own_mark(event, phases)
    if own is not None:
        return max(mark, own)
    ahead = next((n for n in range(mark, min(mark + 3, len(phases))) if phases[n].name == BACKWARD), None)
    return mark if ahead is None else ahead


def _own_mark(event: Mapping[str, Any], phases: Sequence[Phase]) -> int | None:
    text = event.get("user_metadata") or ""
    return int(text) if text.isdigit() and int(text) < len(phases) else None


def _file(place: Place) -> str:
    return str(place.get("filename") or place.get("file") or "")


def _kind(allocation: Allocation, phases: Sequence[Phase], tags: Mapping[int, Mapping[int, str]]) -> str:
    """Return what an allocation is for: as it was tagged while it lived, else by when it began and ended."""
    last = len(phases) if allocation.end_mark is None else allocation.end_mark
    for mark, at in tags.items():
        if allocation.mark < mark <= last and allocation.address in at:
            return at[allocation.address]
    if any(_file(place).endswith(BUCKETS) for place in allocation.frames[:1]):
        return "gradients"
    begun = phases[allocation.mark].name
    if begun == "set-up":  # the first batch is made there, and what stays
        return "other" if allocation.end is None or last == allocation.mark else "activations"
    if allocation.end_mark is not None and allocation.end_mark == allocation.mark:
        return "temporaries"
    if begun == "optimizer" and allocation.end is None:
        return "optimizer"
    return "activations" if begun in ("forward", "between") else "temporaries"
