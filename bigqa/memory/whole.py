"""The footprint of a step from one trace of the whole model: slower than `memory.scaling`, exact in what is reserved.

In: a stream at full depth. Out: a `Footprint`. For candidates so near a limit that fragmentation decides.
"""

from bigqa.memory.allocator import peak_reserved
from bigqa.memory.cards import A100, Card
from bigqa.memory.events import Event, Stream, find_peak, on_card
from bigqa.memory.scaling import BEFORE, Footprint


def whole_footprint(stream: Stream, *, made_on_host: bool, card: Card = A100) -> Footprint:
    """Return what a traced step holds and does."""
    stream = on_card(stream, card)
    events = _on_device(stream.events) if made_on_host else stream.events
    device = Stream(events=events, categories=stream.categories)
    peak = find_peak(device)
    return Footprint(
        allocated_bytes=peak.total_bytes,
        reserved_bytes=peak_reserved(device, [event.size_bytes for event in events]),
        phase=peak.phase,
        by_category=peak.by_category,
        largest=peak.largest,
        flops=stream.flops,
        batched_flops=stream.batched_flops,
        moved_bytes=stream.moved_bytes,
        operations=stream.operations,
        step_bytes=stream.step_bytes,
        offloaded_bytes=stream.offloaded_bytes,
    )


def _on_device(events: list[Event]) -> list[Event]:
    """Drop what came and went in host memory before the first step."""
    gone = {event.storage for event in events if not event.size_bytes and event.phase in BEFORE}
    return [event for event in events if event.storage not in gone]
