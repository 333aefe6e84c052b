"""The footprint of a step from one trace of the whole model: slower than `memory.scaling`, exact in what is reserved.

In: a stream at full depth. Out: a `Footprint`. For candidates so near a limit that fragmentation decides.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from bigqa.memory.allocator import MIB, OutOfMemory
from bigqa.memory.cards import A100, Card
from bigqa.memory.events import BEFORE, Event, Stream, find_peak, moved_on, on_card, sizes_on
from bigqa.memory.parallel import Averaging, with_buckets
from bigqa.memory.replay import peaks
from bigqa.memory.scaling import Footprint, work_of


def whole_footprint(
    stream: Stream, *, made_on_host: bool, card: Card = A100, averaging: Averaging | None = None
) -> Footprint:
    """Return what a traced step holds and does. `averaging`: of several processes."""
    stream = moved_on(stream, card)
    resolved = on_card(stream, card)
    events = _on_device(resolved.events) if made_on_host else resolved.events
    peak = find_peak(Stream(events=events, categories=stream.categories))
    allocated, reserved = peak.total_bytes, peak.total_bytes
    least, by_category = None, peak.by_category
    if made_on_host:
        sizes = sizes_on(stream, card)
        if averaging is None:
            allocated, reserved = peaks(stream, sizes)
        else:
            least, (allocated, reserved) = _ends(stream, sizes, averaging)
            by_category = with_buckets(by_category, averaging)
    return Footprint(
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        phase=peak.phase,
        by_category=by_category,
        largest=peak.largest,
        least=least,
        **work_of(stream, card),
    )


def smallest_bytes(stream: Stream, card: Card) -> int:
    """Return with how little of a card torch's allocator still gets through a step, to a MiB.

    That is less than what it reserves where there is room: before it fails it gives back what is cached as a whole.
    """
    stream = moved_on(stream, card)
    sizes = sizes_on(stream, card)
    least, most = (size // MIB for size in peaks(stream, sizes))
    while least < most:
        middle = (least + most) // 2
        try:
            peaks(stream, sizes, limit_bytes=middle * MIB)
            most = middle
        except OutOfMemory:
            least = middle + 1
    return most * MIB


def _ends(stream: Stream, sizes: Sequence[int], averaging: Averaging) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the peaks at least and at most, of all that NCCL may still hold."""
    held = itertools.product((False, True), repeat=2)
    found = [peaks(stream, sizes, averaging, keeps_sent=sent, keeps_first=first) for sent, first in held]
    allocated, reserved = zip(*found, strict=True)
    return (min(allocated), min(reserved)), (max(allocated), max(reserved))


def beside(found: Footprint, averaging: Averaging) -> Footprint:
    """Put buckets beside what one process holds, for a footprint that was not replayed with them."""
    least, most = averaging.ends
    return replace(
        found,
        allocated_bytes=found.allocated_bytes + most,
        reserved_bytes=found.reserved_bytes + most,
        least=(found.allocated_bytes + least, found.reserved_bytes + least),
        by_category=with_buckets(found.by_category, averaging),
    )


def _on_device(events: list[Event]) -> list[Event]:
    """Drop what came and went in host memory before the first step."""
    gone = {event.storage for event in events if not event.size_bytes and event.phase in BEFORE}
    return [event for event in events if event.storage not in gone]
