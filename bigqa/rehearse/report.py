"""What a rehearsal found, in figures. In: the facts of its processes. Out: one record, as `--json` prints it."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bigqa.language import tr
from bigqa.nullgpu.cards import NullGpu
from bigqa.rehearse.facts import Facts
from bigqa.rehearse.trace import KINDS, Allocation, Place, Trace, read_trace
from bigqa.units import format_bytes

LARGEST = 10
MOST_LINES, LONGEST_TEXT = 6, 200
"""Of a statement that is shown, and characters of it."""
POINTS = 600
"""Of the curves of memory over the steps."""


@dataclass(frozen=True)
class Group:
    """Allocations of a kind that one line made."""

    kind: str
    size_bytes: int
    count: int
    where: str
    """The innermost line outside of torch; empty for those that autograd's own threads made."""
    text: str
    """What stands there."""
    own: str
    """The innermost line of the person's own code."""


@dataclass(frozen=True)
class Shortage:
    """Where memory ran out."""

    message: str
    """Torch's own."""
    phase: str
    step: int
    where: str
    text: str
    own: str
    is_end: bool
    """Whether the command ended by it."""


@dataclass(frozen=True)
class Read:
    """A value that the host read back, which no kernel had computed."""

    size_bytes: int
    times: int
    answer: int
    where: str
    text: str
    own: str

    @property
    def is_question(self) -> bool:
        """A single byte: yes or no."""
        return self.size_bytes == 1


@dataclass(frozen=True)
class Curves:
    """Memory over the events of a run."""

    by_kind: dict[str, list[int]]
    phases: list[tuple[str, int, int]]
    """(phase, step, the point where it begins)."""
    peak: int
    """The point of the peak."""


@dataclass(frozen=True)
class Rehearsal:
    """One run of the command."""

    bound: str
    fits: bool
    allocated_bytes: int
    reserved_bytes: int
    nvml_bytes: int
    """As NVML would show it: all that is taken of the card, with the context."""
    total_bytes: int
    pinned_bytes: int
    managed_bytes: int
    host_bytes: int
    steps: int
    step: int
    """Of the peak."""
    phase: str
    by_kind: dict[str, int]
    largest: list[Group]
    shortage: Shortage | None
    reads: list[Read]
    other_processes: list[dict[str, int]]
    """What the command's other processes took: rank, allocated_bytes, reserved_bytes, nvml_bytes."""
    is_cut: bool
    """Whether there were more allocations than torch was asked to remember."""
    torch: str
    seconds: float
    curves: Curves

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints: all but the curves."""
        return {name: value for name, value in asdict(self).items() if name != "curves"}


def make_report(processes: Sequence[Facts], gpu: NullGpu, seconds: float) -> Rehearsal:
    """Return what was found; the process that took most stands for all."""
    facts, device = processes[0], processes[0].device
    events = facts.snapshot()["device_traces"][device["device"]]
    trace = read_trace(events, facts.marks, facts.tags, gpu.card.capability)
    peak = trace.peak_event
    phase = trace.phases[trace.mark_of_event[peak]] if trace.mark_of_event else None
    live = trace.live_at(peak)
    places = Places(facts.found["torch_folder"])
    kinds = {kind: sum(a.size for a in live if a.kind == kind) for kind in KINDS}
    return Rehearsal(
        bound=gpu.bound,
        fits=not any(process.is_short for process in processes),
        allocated_bytes=device["allocated_bytes"],
        reserved_bytes=device["reserved_bytes"],
        nvml_bytes=device["used_bytes"],
        total_bytes=gpu.total_bytes,
        pinned_bytes=facts.found["pinned_bytes"],
        managed_bytes=facts.found["managed_bytes"],
        host_bytes=facts.found["host_bytes"],
        steps=facts.found["steps"],
        step=phase.step if phase else 0,
        phase=phase.name if phase else "",
        by_kind={kind: size for kind, size in kinds.items() if size},
        largest=_largest(live, places),
        shortage=_shortage(facts, places),
        reads=[_read(read, places) for read in facts.found["reads"]],
        other_processes=[_in_short(other) for other in sorted(processes[1:], key=lambda p: p.rank)],
        is_cut=facts.found["is_cut"],
        torch=facts.found["torch"],
        seconds=round(seconds, 1),
        curves=curves_of(trace),
    )


def _in_short(facts: Facts) -> dict[str, int]:
    device = facts.device
    figures = {name: device[name] for name in ("allocated_bytes", "reserved_bytes")}
    return {"rank": facts.rank, **figures, "nvml_bytes": device["used_bytes"]}


class Places:
    """Tells a person's own lines from those of torch and of other packages."""

    def __init__(self, torch_folder: str) -> None:
        self.torch = torch_folder + os.sep

    def outside_torch(self, stack: Sequence[Place]) -> Place | None:
        """Return the innermost line that is not torch's."""
        return next((place for place in stack if self._is_code(place) and not self._is_torch(place)), None)

    def own(self, stack: Sequence[Place]) -> Place | None:
        """Return the innermost line that is of no installed package."""
        return next((p for p in stack if self._is_code(p) and not self._is_torch(p) and not _is_installed(p)), None)

    def _is_torch(self, place: Place) -> bool:
        return str(place["file" if "file" in place else "filename"]).startswith(self.torch)

    @staticmethod
    def _is_code(place: Place) -> bool:
        return _file(place).endswith(".py") and "bigqa_rehearsal" not in _file(place)


def _file(place: Place) -> str:
    return str(place.get("file") or place.get("filename") or "")


def _is_installed(place: Place) -> bool:
    return re.search(r"/(site|dist)-packages/|/lib/python3\.\d+/", _file(place)) is not None


def name_of(place: Place | None) -> str:
    """Return "folder/file.py:12 function"."""
    if place is None:
        return ""
    short = "/".join(_file(place).split("/")[-2:])
    return f"{short}:{place['line']} {place['name']}"


def _text(place: Place | None) -> str:
    """Return what stands at a place: a statement that goes on in the next lines as a whole, or `if (` says nothing."""
    if place is None:
        return ""
    try:
        with open(_file(place), encoding="utf-8") as file:
            return _statement(file.read().splitlines()[place["line"] - 1 :])
    except (OSError, IndexError, UnicodeDecodeError):
        return str(place.get("text") or "")


def _statement(lines: Sequence[str]) -> str:
    """Return the first line, and those after it until its brackets are closed."""
    text = ""
    for line in lines[:MOST_LINES]:
        is_tight = not text or text.endswith(("(", "[", "{")) or line.strip().startswith((")", "]", "}"))
        text += line.strip() if is_tight else f" {line.strip()}"
        if sum(map(text.count, "([{")) <= sum(map(text.count, ")]}")):
            break
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _largest(live: Iterable[Allocation], places: Places) -> list[Group]:
    groups: dict[tuple[str, str, str], list[Allocation]] = defaultdict(list)
    for allocation in live:
        where, own = places.outside_torch(allocation.frames), places.own(allocation.frames)
        groups[allocation.kind, name_of(where), name_of(own)].append(allocation)
    ranked = sorted(groups.items(), key=lambda item: -sum(a.size for a in item[1]))[:LARGEST]
    return [
        Group(kind, sum(a.size for a in made), len(made), where, _text(places.outside_torch(made[0].frames)), own)
        for (kind, where, own), made in ranked
    ]


def _shortage(facts: Facts, places: Places) -> Shortage | None:
    found: Sequence[Mapping[str, Any]] = facts.found["shortages"]
    if not found:
        return None
    last, failure = found[-1], facts.found["failure"]
    is_told = facts.is_short and failure is not None
    stack = failure["stack"] if is_told else last["stack"]
    own = places.own(stack)
    return Shortage(
        message=failure["message"]
        if is_told
        else tr("{last} were wanted of the GPU", last=format_bytes(last["wanted_bytes"])),
        phase=last["phase"],
        step=last["step"],
        where=name_of(places.outside_torch(stack)),
        text=_text(places.outside_torch(stack)),
        own=name_of(own),
        is_end=facts.is_short,
    )


def _read(found: Mapping[str, Any], places: Places) -> Read:
    where, own = places.outside_torch(found["stack"]), places.own(found["stack"])
    return Read(found["size"], found["times"], found["answer"], name_of(where), _text(where), name_of(own))


def curves_of(trace: Trace) -> Curves:
    """Sample the trace: of each stretch of events, the moment when most was allocated."""
    count, peak = len(trace.totals), trace.peak_event
    width = max(1, -(-count // POINTS))
    chosen = [max(range(n, min(n + width, count)), key=trace.totals.__getitem__) for n in range(0, count, width)]
    changes: dict[str, list[tuple[int, int]]] = {kind: [] for kind in KINDS}
    for a in trace.allocations:
        changes[a.kind].append((a.begin, a.size))
        if a.end is not None:
            changes[a.kind].append((a.end, -a.size))
    by_kind = {kind: _sampled(sorted(found), chosen) for kind, found in changes.items()}
    marks = [trace.mark_of_event[event] for event in chosen]
    begun = [n for n, mark in enumerate(marks) if n == 0 or trace.phases[mark] != trace.phases[marks[n - 1]]]
    phases = [(trace.phases[marks[n]].name, trace.phases[marks[n]].step, n) for n in begun]
    return Curves(by_kind, phases, peak // width)


def _sampled(changes: Sequence[tuple[int, int]], chosen: Sequence[int]) -> list[int]:
    sizes, total, at = [], 0, 0
    for event in chosen:
        while at < len(changes) and changes[at][0] <= event:
            total += changes[at][1]
            at += 1
        sizes.append(total)
    return sizes
