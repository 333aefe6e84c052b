"""What a run with streamed layers holds. In: a model, a strategy, micro-batches. Out: a `Footprint`, whole.

The trainer's own step is traced, of a few layers and micro-batches: what a device holds hangs on neither number once
there are a few, and what is on the host and crosses the link is a line in both. Host memory and traffic are counted by
the engine's own link, which makes tensors without data here.
"""

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from bigqa.engine.attention import kernels as attention
from bigqa.engine.build import change_modules
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.stream.building import Rates, streamed
from bigqa.engine.stream.disk import IN_PLAY_BYTES
from bigqa.engine.stream.update import StreamedUpdate
from bigqa.memory.allocator import SMALL_SEGMENT
from bigqa.memory.cards import Card
from bigqa.memory.conditions import collected_on_demand, dropout_of
from bigqa.memory.depth import depth_of, with_layers
from bigqa.memory.events import Stream
from bigqa.memory.scaling import Footprint
from bigqa.memory.trace import Recorder
from bigqa.memory.traces import Keep, make_anew
from bigqa.memory.whole import whole_footprint
from bigqa.memory.work import Work
from bigqa.strategy import Strategy
from bigqa.tasks.base import Batch, Task

STEADY = 5
"""Micro-batches from which one more changes nothing but what is kept of each."""
FEWEST_LAYERS = 3
WORK = ("flops", "batched_flops", "moved_bytes", "operations", "drawn")
ON_HOST = (
    "kept_bytes", "pinned_bytes", "arriving_bytes", "leaving_bytes", "disk_bytes", "read_bytes",
    "weights_read_bytes", "written_bytes",
)  # fmt: skip
NO_RATES = Rates(eps=1e-6, clip=1.0, weight_decay=0.01)


@dataclass(frozen=True)
class Traced:
    """One trace."""

    stream: Stream
    host: dict[str, Any]
    """What a `Footprint` holds of the host and of the link."""


def trace_streamed(
    make_model: Callable[[], nn.Module], task: Task, make_batch: Callable[[], Batch], strategy: Strategy, count: int
) -> Traced:
    """Trace a step of so many micro-batches. Raises: BigqaError where the model cannot be streamed."""
    recorder = Recorder(on_gpu=strategy.device == "cuda")
    meta = torch.device("meta")

    def made() -> nn.Module:
        with meta:
            return make_model().train()

    # Of weights that go to a disk none is in memory before: see `engine.stream.loading`.
    model = made() if strategy.weights_on_disk and not recorder.on_gpu else None
    with collected_on_demand(), attention.standing_in_for(strategy.device), dropout_of(strategy.device), recorder:
        model = model or made()
        recorder.phase = "set-up"
        change_modules(model, strategy)
        passes, update = streamed(model, task, strategy, meta, NO_RATES)
        recorder.phase = "ready" if recorder.on_gpu else "set-up"
        gc.collect()
        recorder.mark("weights", [*update.placed.slots.places, update.placed.outer_place, *model.buffers()])
        with meta:
            batches = [make_batch() for _ in range(count)]
        parts = Parts(model=model, update=update, task=task, passes=passes)
        link, shelf, before = passes.link, passes.slots.shelf, passes.link.bytes_in
        shelf.bytes_read = shelf.bytes_written = 0
        recorder.work = work = Work()
        recorder.phase = "forward" if recorder.on_gpu else recorder.phase
        with _phases_of(recorder, task, update), _reads_of(update) as weights_read:
            train_step(parts, batches, count)
        recorder.closed = True
    host = {
        "kept_bytes": link.kept_bytes - link.pinned_bytes + passes.slots.ahead_bytes,
        "pinned_bytes": link.pinned_bytes,
        "arriving_bytes": link.bytes_in - before,
        "leaving_bytes": link.bytes_out,
        "disk_bytes": shelf.disk_bytes + update.handed_back_bytes,
        "read_bytes": shelf.bytes_read,
        "weights_read_bytes": weights_read[0],
        "written_bytes": shelf.bytes_written,
    }
    return Traced(recorder.stream(work), host)


@contextmanager
def _phases_of(recorder: Recorder, task: Task, update: StreamedUpdate) -> Iterator[None]:
    """Name the phases: the backward pass begins with the first loss that is there."""
    loss_sum, step, send, of_update = task.loss_sum, update.step, update.placed.send, Work()
    recorder.phase = "forward"

    def loss(*args: Any) -> Any:
        found = loss_sum(*args)
        recorder.phase = "backward"
        return found

    def last() -> Any:
        recorder.phase, recorder.work, recorder.updating = "clip", of_update, True
        return step()

    def sent(weight: Any, parameter: Any) -> None:
        recorder.mark("gradients", [parameter.grad])
        send(weight, parameter)

    vars(task)["loss_sum"] = loss
    update.step, update.placed.send = last, sent  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.loss_sum, update.step, update.placed.send


@contextmanager
def _reads_of(update: StreamedUpdate) -> Iterator[list[int]]:
    """Yield a list that will hold what was read of a disk by the time that the update begins."""
    found: list[int] = []
    step = update.step

    def last() -> Any:
        found.append(update.shelf.bytes_read)
        return step()

    update.step = last  # type: ignore[method-assign]
    try:
        yield found
    finally:
        update.step = step  # type: ignore[method-assign]


class TracedTask(Task, Protocol):
    """A task that can tell the shapes of its batches."""

    def example(self, micro_batch: int, seq_len: int, *, packed: bool = False) -> Batch:
        """Return a full micro-batch on the current device, for shapes alone."""
        ...


class Shape(NamedTuple):
    """Of a step."""

    micro_batch: int
    seq_len: int
    micro_batches: int
    packed: bool

    @classmethod
    def of(cls, micro_batch: int, key: tuple[Strategy, int, bool, bool], micro_batches: int | None = None) -> "Shape":
        """Return a step's: its key tells length, whether there are several micro-batches, and whether they are packed.

        How many there are may not be known.
        """
        _, seq_len, accumulating, packed = key
        return cls(micro_batch, seq_len, micro_batches or (STEADY if accumulating else 1), packed)


class StreamedRuns:
    """Traces of one model, and what follows from them."""

    def __init__(
        self, config: Any, make_model: Callable[[Any], nn.Module], task: TracedTask,
        repeating: Callable[[], tuple[int, int]], keep: Keep = make_anew,
    ) -> None:  # fmt: skip
        """`repeating`: returns two depths that stand for the full one."""
        self._keep = keep
        self.config, self.make_model, self.task, self.repeating = config, make_model, task, repeating
        self.num_layers = depth_of(config)
        self._known: dict[tuple[Strategy, Shape], list[Traced]] = {}

    def footprint(self, strategy: Strategy, shape: Shape, card: Card) -> Footprint:
        """Return what a step holds and does: products and the like of one of its micro-batches.

        Of a GPU's allocator it holds a segment less where all micro-batches are full: else what is a large block of one
        may be a small one of another, in a segment of its own.
        """
        found = self._of_full(strategy, shape, card)
        found = replace(found, kept_bytes=found.kept_bytes + min(found.disk_bytes, IN_PLAY_BYTES))
        if strategy.device == "cpu":
            return found
        least = found.allocated_bytes, found.reserved_bytes
        return replace(found, reserved_bytes=found.reserved_bytes + SMALL_SEGMENT, least=least)

    def _of_full(self, strategy: Strategy, shape: Shape, card: Card) -> Footprint:
        steady = shape._replace(micro_batches=min(shape.micro_batches, STEADY))
        found = self._at(strategy, steady, card)
        if steady == shape:
            return found
        more = self._at(strategy, steady._replace(micro_batches=STEADY + 1), card)
        grown = _lines(found, more, ("allocated_bytes", *ON_HOST), shape.micro_batches - STEADY)
        gap = found.reserved_bytes - found.allocated_bytes
        return replace(found, **grown, reserved_bytes=max(found.reserved_bytes, grown["allocated_bytes"] + gap))

    def step(self, strategy: Strategy, shape: Shape) -> Stream:
        """Return the events of a step of all layers."""
        return self._trace(strategy, shape, self.num_layers).stream

    @functools.cached_property
    def depths(self) -> tuple[int, int]:
        """Two depths that stand for the full one, both such that the places of layers have been taken in turns."""
        first, second = self.repeating()
        while second > first and first < FEWEST_LAYERS and second < self.num_layers:
            first, second = second, 2 * second - first
        return first, second

    def _at(self, strategy: Strategy, shape: Shape, card: Card) -> Footprint:
        if (strategy, shape) not in self._known:
            self._known[strategy, shape] = [self._trace(strategy, shape, depth) for depth in self.depths]
        on_gpu = strategy.device == "cuda"
        low, high = (_footprint(one, card, on_gpu=on_gpu) for one in self._known[strategy, shape])
        first, second = self.depths
        grown = _lines(low, high, (*WORK, *ON_HOST, "step_bytes"), (self.num_layers - first) // max(1, second - first))
        return replace(high, **grown | {name: grown[name] // shape.micro_batches for name in WORK})

    def _trace(self, strategy: Strategy, shape: Shape, layers: int) -> Traced:
        config = self.config if layers == self.num_layers else with_layers(self.config, layers)
        make = functools.partial(
            trace_streamed,
            lambda: self.make_model(config),
            self.task,
            lambda: self.task.example(shape.micro_batch, shape.seq_len, packed=shape.packed),
            strategy,
            shape.micro_batches,
        )
        return self._keep(Traced, (strategy.model_dump_json(), *shape, layers), make)


def _footprint(traced: Traced, card: Card, *, on_gpu: bool) -> Footprint:
    found = whole_footprint(traced.stream, made_on_host=on_gpu, card=card)
    return replace(found, **traced.host)


def _lines(one: Footprint, other: Footprint, names: tuple[str, ...], times: int) -> dict[str, Any]:
    """Go on from one footprint by so many times what the other has more."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return {name: first + (second - first) * times for name, (first, second) in pairs.items()}
