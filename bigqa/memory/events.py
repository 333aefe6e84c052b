"""Allocations and frees of a training step, as records. In: what a trace saw. Out: a stream that can be replayed."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from bigqa.memory.cards import Card
from bigqa.memory.scratch import Scratch

Category = Literal["weights", "gradients", "optimizer", "activations", "temporaries"]
CATEGORIES: tuple[Category, ...] = ("weights", "gradients", "optimizer", "activations", "temporaries")


BEFORE = ("model", "set-up", "states", "ready")
"""Phases before the first step. For a GPU they pass in host memory, and only what they leave behind counts."""


@dataclass(frozen=True, slots=True)
class Event:
    """A storage is allocated (size > 0), or freed (size 0)."""

    storage: int
    size_bytes: int
    phase: str
    operation: str
    repeats: int = 1
    """Allocations one after the other that this one stands for."""
    of_update: bool = False
    """Made by the update, which a step has once."""
    scratch: Scratch | None = None
    """Where the size is a rule's: `size_bytes` is then no more than a sign of an allocation."""
    takes: int = 0
    """Of a free, the storage that is freed in its place, and whose place it takes, on a card that has it at all."""


@dataclass(slots=True)
class Stream:
    """What one process did, in order."""

    events: list[Event] = field(default_factory=list)
    categories: dict[int, Category] = field(default_factory=dict)
    """Of each storage."""
    flops: int = 0
    """Of the matrix products of one micro-batch."""
    batched_flops: int = 0
    """The part of them that is attention's."""
    drawn: int = 0
    """Elements of dropout of one micro-batch, on a CPU."""
    moved_bytes: int = 0
    """Read and written by all other operations of one micro-batch."""
    operations: int = 0
    """Launched for one micro-batch."""
    step_bytes: int = 0
    """Read and written once in an optimizer step: norms, clipping, masters."""
    offloaded_bytes: int = 0
    """Activations of one micro-batch that are sent to the host."""
    offloaded: tuple[int, ...] = ()
    """Bytes of each of these storages."""
    managed_bytes: int = 0
    """Of paged optimizers' states: CUDA's managed memory, which torch does not count."""
    states: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Event before which an optimizer steps, and the storages of its states: a first step makes them there."""
    placed: tuple[int, ...] = ()
    """Storages of the model, in the order in which it is placed on a GPU."""
    batch: tuple[int, ...] = ()
    """Storages of a step's micro-batches, which the next step has anew."""
    added_to: dict[int, int] = field(default_factory=dict)
    """Storage of a gradient -> that of the gradient of an earlier micro-batch that it is added to."""


def moved_on(stream: Stream, card: Card) -> Stream:
    """Return a stream in which storages have moved that a card makes anew, such as a gradient in another form."""
    if not any(event.takes for event in stream.events):
        return stream
    rules = {event.storage: event.scratch for event in stream.events if event.scratch is not None}
    moved: dict[int, int] = {}
    events = []
    for event in stream.events:
        if event.takes and rules[event.storage].size(card):
            moved[event.takes] = event.storage
            events.append(replace(event, storage=event.takes, takes=0))
        elif event.storage in moved and not event.size_bytes:
            events.append(replace(event, storage=moved.pop(event.storage), takes=0))
        else:
            events.append(replace(event, takes=0) if event.takes else event)
    return replace(stream, events=events)


def sizes_on(stream: Stream, card: Card) -> list[int]:
    """Return the size of each allocation on a card; zero for what it has not, and for frees."""
    return [event.size_bytes if event.scratch is None else event.scratch.size(card) for event in stream.events]


def on_card(stream: Stream, card: Card) -> Stream:
    """Return a stream with the sizes that a card makes of rules; what it has not is left out."""
    stream = moved_on(stream, card)
    sizes = {event.storage: event.scratch.size(card) for event in stream.events if event.scratch is not None}
    if not sizes:
        return stream
    events = [
        replace(event, size_bytes=sizes[event.storage], scratch=None) if event.scratch is not None else event
        for event in stream.events
        if sizes.get(event.storage, 1)
    ]
    return replace(stream, events=events)


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that was live at once, and what it was made of."""

    total_bytes: int
    phase: str
    by_category: dict[str, int]
    largest: tuple[tuple[str, int], ...]
    """The largest tensors at the peak: the operation that made each, and its bytes."""


def live_sizes(stream: Stream, rounding_bytes: int) -> Iterator[tuple[Event, int]]:
    """Yield each event with the bytes that are live after it."""
    sizes: dict[int, int] = {}
    live = 0
    for event in stream.events:
        if event.size_bytes:
            sizes[event.storage] = -(-event.size_bytes // rounding_bytes) * rounding_bytes
            live += sizes[event.storage]
        else:
            live -= sizes.pop(event.storage)
        yield event, live


def find_peak(stream: Stream, rounding_bytes: int = 512, num_largest: int = 5) -> Peak:
    """Return the peak of the whole stream."""
    at, most = 0, -1
    for index, (_, live) in enumerate(live_sizes(stream, rounding_bytes)):
        if live > most:
            at, most = index, live
    live_events: dict[int, Event] = {}
    for event in stream.events[: at + 1]:
        if event.size_bytes:
            live_events[event.storage] = event
        else:
            live_events.pop(event.storage)
    by_category: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
    for event in live_events.values():
        rounded = -(-event.size_bytes // rounding_bytes) * rounding_bytes
        by_category[stream.categories[event.storage]] += rounded
    transient = [event for event in live_events.values() if stream.categories[event.storage] != "weights"]
    largest = sorted(transient, key=lambda event: -event.size_bytes)[:num_largest]
    return Peak(
        total_bytes=max(most, 0),
        phase=stream.events[at].phase if stream.events else "",
        by_category=by_category,
        largest=tuple((event.operation, event.size_bytes) for event in largest),
    )
