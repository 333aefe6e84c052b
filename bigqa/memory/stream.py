"""What a run with streamed layers holds. In: a model, a strategy, micro-batches. Out: a `Footprint`, whole.

The trainer's own step is traced, of a few layers and micro-batches: what a device holds hangs on neither number once
there are a few, and what is on the host and crosses the link is a line in both. Host memory and traffic are counted by
the engine's own link, which makes tensors without data here.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bigqa.engine.attention import kernels as attention
from bigqa.engine.build import change_modules
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.stream.building import Rates, streamed
from bigqa.engine.stream.update import StreamedUpdate
from bigqa.memory.cards import Card
from bigqa.memory.conditions import collected_on_demand, dropout_of
from bigqa.memory.events import Stream
from bigqa.memory.scaling import Footprint
from bigqa.memory.trace import Recorder
from bigqa.memory.whole import whole_footprint
from bigqa.memory.work import Work
from bigqa.strategy import Strategy
from bigqa.tasks.base import Batch, Task

STEADY = 5
"""Micro-batches from which one more changes nothing but what is kept of each."""
FEWEST_LAYERS = 3
NO_RATES = Rates(eps=1e-6, clip=1.0, weight_decay=0.01)


@dataclass(frozen=True)
class OnHost:
    """Of one process: what is on the host while it trains, and what crosses the link in a step. Bytes."""

    kept: int
    """Pinned memory included."""
    pinned: int
    arriving: int
    leaving: int

    def values(self) -> tuple[int, int, int, int]:
        """Return all of them."""
        return self.kept, self.pinned, self.arriving, self.leaving


@dataclass(frozen=True)
class Traced:
    """One trace."""

    stream: Stream
    host: OnHost


def trace_streamed(
    make_model: Callable[[], nn.Module], task: Task, make_batch: Callable[[], Batch], strategy: Strategy, count: int
) -> Traced:
    """Trace a step of so many micro-batches. Raises: BigqaError where the model cannot be streamed."""
    recorder = Recorder(on_gpu=strategy.device == "cuda")
    meta = torch.device("meta")
    with collected_on_demand(), attention.standing_in_for(strategy.device), dropout_of(strategy.device), recorder:
        with meta:
            model = make_model().train()
        recorder.phase = "set-up"
        change_modules(model, strategy)
        passes, update = streamed(model, task, strategy, meta, NO_RATES)
        recorder.phase = "ready" if recorder.on_gpu else "set-up"
        gc.collect()
        recorder.mark("weights", [*update.placed.slots.places, update.placed.outer_place, *model.buffers()])
        with meta:
            batches = [make_batch() for _ in range(count)]
        parts = Parts(model=model, update=update, task=task, passes=passes)
        link, before = passes.link, passes.link.bytes_in
        recorder.work = work = Work()
        recorder.phase = "forward" if recorder.on_gpu else recorder.phase
        with _phases_of(recorder, task, update):
            train_step(parts, batches, count)
        recorder.closed = True
    kept = link.kept_bytes
    return Traced(recorder.stream(work), OnHost(kept, link.pinned_bytes, link.bytes_in - before, link.bytes_out))


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

    task.loss_sum, update.step, update.placed.send = loss, last, sent  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.loss_sum, update.step, update.placed.send


Trace = Callable[[Strategy, int, int, int, int], Traced]
"""(strategy, layers, micro-batch, sequence length, micro-batches) -> trace."""


class StreamedRuns:
    """Traces of one model, and what follows from them."""

    def __init__(self, trace: Trace, num_layers: int, repeat: int) -> None:
        """`repeat`: after how many layers their kinds repeat."""
        self.trace, self.num_layers = trace, num_layers
        first = num_layers % repeat + repeat * -(-FEWEST_LAYERS // repeat)
        self.depths = (first, first + repeat) if first + repeat < num_layers else (num_layers, num_layers)
        self._known: dict[tuple[Strategy, int, int, int], list[Traced]] = {}

    def footprint(
        self, strategy: Strategy, micro_batch: int, seq_len: int, micro_batches: int, card: Card
    ) -> tuple[Footprint, OnHost]:
        """Return what a step of so many micro-batches holds and does: products and the like of one micro-batch."""
        count = min(micro_batches, STEADY)
        found, host = self._at(strategy, micro_batch, seq_len, count, card)
        if micro_batches == count:
            return found, host
        other, more = self._at(strategy, micro_batch, seq_len, count + 1, card)
        times = micro_batches - count

        def line(one: int, two: int) -> int:
            return one + (two - one) * times

        grown = OnHost(*(line(a, b) for a, b in zip(host.values(), more.values(), strict=True)))
        allocated = line(found.allocated_bytes, other.allocated_bytes)
        reserved = max(found.reserved_bytes, allocated + found.reserved_bytes - found.allocated_bytes)
        return replace(found, allocated_bytes=allocated, reserved_bytes=reserved), grown

    def _at(
        self, strategy: Strategy, micro_batch: int, seq_len: int, count: int, card: Card
    ) -> tuple[Footprint, OnHost]:
        low, high = self._traces(strategy, micro_batch, seq_len, count)
        on_gpu = strategy.device == "cuda"
        a, b = (whole_footprint(one.stream, made_on_host=on_gpu, card=card) for one in (low, high))
        steps = (self.num_layers - self.depths[0]) // max(1, self.depths[1] - self.depths[0])

        def line(one: int, two: int) -> int:
            return one + (two - one) * steps

        names = ("flops", "batched_flops", "moved_bytes", "operations")
        work = {name: line(getattr(a, name), getattr(b, name)) // count for name in names}
        drawn = line(low.stream.drawn, high.stream.drawn) // count
        host = OnHost(*(line(*pair) for pair in zip(low.host.values(), high.host.values(), strict=True)))
        step_bytes = line(a.step_bytes, b.step_bytes)
        return replace(b, **work, drawn=drawn, step_bytes=step_bytes, pinned_bytes=host.pinned), host

    def _traces(self, strategy: Strategy, micro_batch: int, seq_len: int, count: int) -> list[Traced]:
        key = strategy, micro_batch, seq_len, count
        if key not in self._known:
            self._known[key] = [self.trace(strategy, depth, micro_batch, seq_len, count) for depth in self.depths]
        return self._known[key]
