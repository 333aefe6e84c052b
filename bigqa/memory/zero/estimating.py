"""What a GPU of a run with DeepSpeed holds at most. In: a model, a strategy, processes. Out: `Peaks`.

A micro-batch is traced once for all numbers of processes and all places of states: only the stage of the weights,
recomputation and precision shape it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bigqa.engine.pinned import whole_pages
from bigqa.engine.zero import buckets_of
from bigqa.memory.cards import Card
from bigqa.memory.events import Stream, moved_on, sizes_on
from bigqa.memory.scaling import BATCHES, NUM_LARGEST, NoLineError, sizes_at
from bigqa.memory.zero.device import Device
from bigqa.memory.zero.replay import replay
from bigqa.memory.zero.trace import MicroBatch
from bigqa.strategy import Strategy

Trace = Callable[[Strategy, int, int], MicroBatch]
"""(strategy, micro-batch, sequence length) -> trace of all layers."""
Key = tuple[Strategy, int]


@dataclass(frozen=True)
class Peaks:
    """Bytes of one process."""

    allocated_bytes: int
    reserved_bytes: int
    pinned_bytes: int
    host_bytes: int
    """Of states in host memory that is not pinned."""
    phase: str
    by_category: dict[str, int]
    largest: tuple[tuple[str, int], ...]


class ShardedRuns:
    """Replays runs of one model; a trace is made once for all that share it."""

    def __init__(self, trace: Trace, num_parameters: Callable[[], int]) -> None:
        self.trace, self.num_parameters = trace, num_parameters
        self._traces: dict[tuple[Key, int], MicroBatch] = {}
        self._known: dict[Any, Peaks] = {}

    def peaks(
        self, strategy: Strategy, micro_batch: int, seq_len: int, *, accumulating: bool, world_size: int, card: Card,
        whole: bool,
    ) -> Peaks:  # fmt: skip
        """Return what the first of so many processes holds. `whole`: trace the micro-batch itself, not two others."""
        asked = (strategy, micro_batch, seq_len, accumulating, world_size, card, whole)
        if asked not in self._known:
            traced, sizes = self._sizes((_traced(strategy), seq_len), micro_batch, card, whole=whole)
            self._known[asked] = self._replayed(strategy, traced, sizes, world_size, 2 if accumulating else 1)
        return self._known[asked]

    def _sizes(self, key: Key, micro_batch: int, card: Card, *, whole: bool) -> tuple[MicroBatch, list[int]]:
        if not whole:
            pair = [_moved(self._traced(key, batch), card) for batch in BATCHES]
            try:
                return pair[0], sizes_at([one.stream for one in pair], micro_batch, card).tolist()
            except NoLineError:
                pass
        traced = _moved(self._traced(key, micro_batch), card)
        return traced, sizes_on(traced.stream, card)

    def _traced(self, key: Key, micro_batch: int) -> MicroBatch:
        if (key, micro_batch) not in self._traces:
            strategy, seq_len = key
            self._traces[key, micro_batch] = self.trace(strategy, micro_batch, seq_len)
        return self._traces[key, micro_batch]

    def last_step(
        self, strategy: Strategy, micro_batch: int, seq_len: int, *, accumulating: bool, world_size: int, card: Card
    ) -> Stream:
        """Return the events of a step with all that is there before it."""
        traced, sizes = self._sizes((_traced(strategy), seq_len), micro_batch, card, whole=True)
        return self._run(strategy, traced, sizes, world_size, 2 if accumulating else 1).last_step()

    def _run(
        self, strategy: Strategy, traced: MicroBatch, sizes: list[int], world_size: int, micro_batches: int
    ) -> Device:
        buckets = buckets_of(self.num_parameters())
        return replay(traced, sizes, strategy, world_size, buckets, micro_batches=micro_batches)

    def _replayed(
        self, strategy: Strategy, traced: MicroBatch, sizes: list[int], world_size: int, micro_batches: int
    ) -> Peaks:
        device = self._run(strategy, traced, sizes, world_size, micro_batches)
        by_category, passing = device.at_peak()
        return Peaks(
            allocated_bytes=device.allocator.peak_allocated_bytes,
            reserved_bytes=device.allocator.peak_reserved_bytes,
            pinned_bytes=device.pinned_bytes + _offloaded(traced.stream),
            host_bytes=device.host_bytes,
            phase=device.peak_phase,
            by_category=by_category,
            largest=tuple(sorted(passing, key=lambda one: -one[1])[:NUM_LARGEST]),
        )


def _offloaded(stream: Stream) -> int:
    return sum(map(whole_pages, stream.offloaded))


def _traced(strategy: Strategy) -> Strategy:
    """Return the axes that shape a trace."""
    return Strategy(
        precision=strategy.precision,
        recompute=strategy.recompute,
        activation_offload=strategy.activation_offload,
        zero_stage=3 if strategy.zero_stage == 3 else 2,
        device=strategy.device,
    )


def _moved(traced: MicroBatch, card: Card) -> MicroBatch:
    return replace(traced, stream=moved_on(traced.stream, card))
