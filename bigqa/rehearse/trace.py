"""Torch's record of allocations, told apart. In: its events, a run's marks and tags. Out: every allocation, by kind.

Allocated memory counts until its free is asked for, and sizes are rounded up, as in torch's own figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigqa.units import MIB

KINDS = ("weights", "optimizer", "gradients", "activations", "temporaries", "workspaces", "other")
ROUNDING = 512
"""torch gives out memory in multiples of this."""
WORKSPACES = (8 * MIB + 128 * 1024, 32 * MIB)
"""What torch gives cuBLAS for each of its handles and streams, by compute capability (`CUDABlas.cpp`)."""
BACKWARD = "backward"
Place = dict[str, Any]


@dataclass
class Allocation:
    """One block of memory, from when it was given out to when its free was asked for."""

    address: int
    size: int
    begin: int
    """The number of its event."""
    mark: int
    """The phase that it began in: an index of the run's marks."""
    frames: Sequence[Place]
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


def read_trace(
    events: Sequence[Mapping[str, Any]],
    marks: Sequence[tuple[str, int]],
    tags: Mapping[int, Mapping[int, str]],
) -> Trace:
    """Return a device's trace with the kind of every allocation.

    Args:
        events: `_snapshot()["device_traces"][device]`.
        marks: (phase, steps done when it began); an allocation's metadata is an index of it.
        tags: what lay at an address when a mark was made.
    """
    phases = name_phases(marks)
    trace = Trace([], phases, [])
    live: dict[int, Allocation] = {}
    total = mark = 0
    for number, event in enumerate(events):
        mark = _mark_of(event, mark, phases)
        address = event["addr"]
        if event["action"] == "alloc":
            size = max(ROUNDING, -(-event["size"] // ROUNDING) * ROUNDING)
            live[address] = Allocation(address, size, number, mark, event.get("frames", ()))
            trace.allocations.append(live[address])
            total += size
        elif event["action"] == "free_requested" and address in live:
            gone = live.pop(address)
            gone.end, gone.end_mark = number, mark
            total -= gone.size
        trace.totals.append(total)
        trace.mark_of_event.append(mark)
    for allocation in trace.allocations:
        allocation.kind = _kind(allocation, phases, tags)
    return trace


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
    text = event.get("user_metadata") or ""
    if text.isdigit() and int(text) < len(phases):
        return max(mark, int(text))
    ahead = next((n for n in range(mark, min(mark + 3, len(phases))) if phases[n].name == BACKWARD), None)
    return mark if ahead is None else ahead


def _kind(allocation: Allocation, phases: Sequence[Phase], tags: Mapping[int, Mapping[int, str]]) -> str:
    """Return what an allocation is for: as it was tagged while it lived, else by when it began and ended."""
    last = len(phases) if allocation.end_mark is None else allocation.end_mark
    for mark, at in tags.items():
        if allocation.mark < mark <= last and allocation.address in at:
            return at[allocation.address]
    if allocation.size in WORKSPACES and allocation.end is None:
        return "workspaces"
    begun = phases[allocation.mark].name
    if begun == "set-up":
        return "other"
    if allocation.end_mark is not None and allocation.end_mark == allocation.mark:
        return "temporaries"
    if begun == "optimizer" and allocation.end is None:
        return "optimizer"
    return "activations" if begun in ("forward", "between") else "temporaries"
