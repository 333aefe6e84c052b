"""What a strategy needs: tensors traced, the rest modelled. In: a configuration, a strategy. Out: `MemoryEstimate`.

Everything that is not a torch tensor is one small function with its source: `memory.deepspeed`, `memory.host`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from bigqa.engine.attention import kernels as attention
from bigqa.engine.attention.packing import check_takes_text, packs_without_data
from bigqa.engine.build import change
from bigqa.engine.loop.staging import staged_bytes
from bigqa.engine.optim.precision import DTYPES
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.memory import deepspeed, host
from bigqa.memory.cards import A100, Card
from bigqa.memory.conditions import told_in_a_line
from bigqa.memory.depth import depth_of, depths_for, with_layers
from bigqa.memory.events import Stream, on_card
from bigqa.memory.forks import in_forks
from bigqa.memory.parallel import Averaging, averaging_of
from bigqa.memory.scaling import Footprint, NoLineError, Scaling
from bigqa.memory.scratch import workspace_bytes
from bigqa.memory.shapes import Following
from bigqa.memory.stream import Shape, StreamedRuns
from bigqa.memory.timeline import Timeline, timeline_of
from bigqa.memory.trace import trace_step
from bigqa.memory.traces import Keep, make_anew
from bigqa.memory.whole import beside, smallest_bytes, whole_footprint
from bigqa.memory.zero.estimating import Peaks, ShardedRuns
from bigqa.memory.zero.trace import MicroBatch, trace_micro_batch
from bigqa.strategy import Strategy
from bigqa.tasks.base import TrainedTask

MIB = 2**20

Key = tuple[Strategy, int, bool, bool]
"""What shapes a trace: the axes, the sequence length, whether gradients are accumulated, whether windows are packed."""


class MemoryEstimate(BaseModel):
    """Bytes of one process at its peak."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allocated_bytes: int
    """By torch, on the device; on a CPU, live tensors. At most, where that hangs on chance."""
    reserved_bytes: int
    """By torch's allocator, from the device; at most."""
    least: tuple[int, int] | None = None
    """Both at least, where that hangs on chance: several processes (`memory.parallel`), micro-batches not full."""
    device_bytes: int
    """As NVML shows it: reserved, and the context. On a CPU: zero."""
    host_bytes: int
    """Resident, pinned memory included."""
    pinned_bytes: int
    managed_bytes: int = 0
    """Of paged optimizers' states, beside torch's: on the device as far as there is room, else on the host."""
    disk_bytes: int
    phase: str
    by_category: dict[str, int]
    largest: tuple[tuple[str, int], ...]


class Estimator:
    """Estimates one model and task; a trace is made once for each set of axes that shapes it."""

    def __init__(self, config: Any, make_model: Callable[[Any], Any], task: TrainedTask, keep: Keep = make_anew):
        """`keep`: returns a trace that was made before, else makes it."""
        self.config = config
        self._keep = keep
        self.make_model = make_model
        self.task = task
        self._scalings: dict[Key, Scaling | BigqaError] = {}
        self._wholes: dict[tuple[Key, int], Stream] = {}
        self._counts: tuple[int, int] | None = None
        self._averagings: dict[Strategy, Averaging] = {}
        self._sharded = ShardedRuns(self._trace_micro_batch, lambda: self.num_parameters)
        self._streamed = StreamedRuns(config, make_model, task, lambda: self.depths, keep)

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, all of them trained."""
        return self._count()[0]

    @functools.cached_property
    def packs(self) -> bool:
        """Whether the model takes windows packed end to end. Raises: BigqaError where text is not enough for it."""
        first, second = self.depths
        model = self._on_meta(with_layers(self.config, first) if first != second else self.config)
        with Following():
            if attention.use(model) and packs_without_data(model, self.task):
                return True
            check_takes_text(model, self.task)
            return False

    @functools.cached_property
    def depths(self) -> tuple[int, int]:
        """Depths whose traces stand for the full one's."""
        return depths_for(self.config, self.make_model)

    def _on_meta(self, config: Any) -> torch.nn.Module:
        with told_in_a_line(tr("it cannot be made")), torch.device("meta"):
            model: torch.nn.Module = self.make_model(config)
        return model

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest module that ZeRO-3 gathers at once: a layer, or the embeddings."""
        return self._count()[1]

    def footprint(
        self, strategy: Strategy, micro_batch: int, seq_len: int, *, accumulating: bool, card: Card = A100,
        micro_batches: int | None = None,
    ) -> Footprint:  # fmt: skip
        """Return what one process holds and does in a step of one micro-batch.

        `micro_batches`: of the step, where they are known; what is streamed keeps something of each.
        """
        key = self._key(strategy, seq_len, accumulating, card)
        if strategy.stream:
            with told_in_a_line(tr("its layers cannot be streamed")):
                return self._streamed.footprint(key[0], Shape.of(micro_batch, key, micro_batches), card)
        if key not in self._scalings:
            self._scalings[key] = self._scaling_or_why(key)
        scaling = self._scalings[key]
        if isinstance(scaling, BigqaError):
            raise scaling
        try:
            return scaling.at(micro_batch, card)
        except NoLineError:  # as where only what is large enough is offloaded
            return self._whole(key, micro_batch, card)

    def _whole(self, key: Key, micro_batch: int, card: Card, averaging: Averaging | None = None) -> Footprint:
        """Return the footprint of all layers traced at the micro-batch itself."""
        stream, on_gpu = self._whole_stream(key, micro_batch), key[0].device == "cuda"
        return whole_footprint(stream, made_on_host=on_gpu, card=card, averaging=averaging)

    def _whole_stream(self, key: Key, micro_batch: int) -> Stream:
        if (key, micro_batch) not in self._wholes:
            self._wholes[key, micro_batch] = self._trace(key, depth_of(self.config), micro_batch)
        return self._wholes[key, micro_batch]

    def smallest_bytes(
        self, strategy: Strategy, micro_batch: int, seq_len: int, *, accumulating: bool, card: Card
    ) -> int:  # fmt: skip
        """Return with how little for torch a step of one process without DeepSpeed still runs, at all layers."""
        return smallest_bytes(self._whole_stream(self._key(strategy, seq_len, accumulating, card), micro_batch), card)

    def trace_ahead(self, wanted: Iterable[tuple[Strategy, int, bool]], card: Card = A100) -> None:
        """Make the traces of many (strategy, sequence length, accumulating) at once, on all cores."""
        keys: dict[Key, None] = {self._key(*one, card): None for one in wanted}
        groups: dict[Any, list[Key]] = {}
        for key in keys:
            if key not in self._scalings and not key[0].stream:
                groups.setdefault(self.shared_by(key[0]), []).append(key)
        ordered = sorted(groups.values(), key=len, reverse=True)
        self.prepare()
        traced = in_forks(lambda group: [self._scaling_or_why(key) for key in group], ordered)
        for group, found in zip(ordered, traced, strict=True):
            self._scalings |= dict(zip(group, found, strict=True))

    def prepare(self) -> None:
        """Find what every trace wants to know, and import the model's library: once, before there are forks."""
        self._count()
        _ = self.packs, self.depths

    def shared_by(self, strategy: Strategy) -> Any:
        """Return what tells the strategies apart that one process had better trace: the others gain nothing together.

        Those with adapters go together: PEFT takes a second to import.
        """
        return strategy.adapters != "none" or _traced(strategy)

    def estimate(
        self,
        strategy: Strategy,
        micro_batch: int,
        seq_len: int,
        *,
        accumulating: bool,
        world_size: int = 1,
        card: Card = A100,
        whole: bool = False,
        micro_batches: int | None = None,
    ) -> MemoryEstimate:
        """Return the peaks of one process. `micro_batches`: of a step, where they are known.

        `whole`: trace all layers, which is exact in what the allocator reserves and takes about a second.
        """
        staged = self._staged_bytes(strategy, micro_batch, seq_len, micro_batches or 1 + accumulating, card)
        if strategy.needs_deepspeed and strategy.device == "cuda":
            return self._of_sharded(strategy, micro_batch, seq_len, accumulating, world_size, card, whole, staged)
        averaging = None if strategy.stream or world_size < 2 or strategy.device == "cpu" else self._averaging(strategy)
        if whole and not strategy.stream:
            found = self._whole(self._key(strategy, seq_len, accumulating, card), micro_batch, card, averaging)
        else:
            asked: dict[str, Any] = {"accumulating": accumulating, "card": card, "micro_batches": micro_batches}
            found = self.footprint(strategy, micro_batch, seq_len, **asked)
            found = found if averaging is None else beside(found, averaging)
        if strategy.device == "cpu":
            states = None
            if strategy.needs_deepspeed:
                states = deepspeed.states(strategy, self.num_parameters, self.largest_layer, world_size)
                found = deepspeed.with_states(found, states)
            return _on_cpu(found, strategy, states)
        kept_bytes = found.pinned_bytes + found.managed_bytes + found.kept_bytes
        return self._on_gpu(found, strategy, card, kept_bytes, staged, found.managed_bytes, found.disk_bytes)

    def _staged_bytes(self, strategy: Strategy, micro_batch: int, seq_len: int, count: int, card: Card) -> int:
        """Return what is pinned of full batches, so many a step, on their way to a GPU."""
        if strategy.device == "cpu":
            return 0
        *_, packed = self._key(strategy, seq_len, False, card)
        with torch.device("meta"):
            return staged_bytes([self.task.example(micro_batch, seq_len, packed=packed)] * count)

    def _on_gpu(
        self, found: Footprint | Peaks, strategy: Strategy, card: Card, kept_bytes: int, staged: int,
        managed_bytes: int = 0, disk_bytes: int = 0,
    ) -> MemoryEstimate:  # fmt: skip
        """Return what a run on a GPU takes. `kept_bytes`: of the host, as it trains; `staged`: pinned for batches."""
        workspaces = min(2 * workspace_bytes(card), found.by_category["temporaries"])
        # What torch leaves unsplit at the end of a block counts as allocated, and is nobody's.
        unsplit = found.allocated_bytes - sum(found.by_category.values())
        parts = {"temporaries": found.by_category["temporaries"] - workspaces + unsplit, "workspaces": workspaces}
        return MemoryEstimate(
            allocated_bytes=found.allocated_bytes,
            reserved_bytes=found.reserved_bytes,
            least=found.least if isinstance(found, Footprint) else None,
            device_bytes=found.reserved_bytes + card.context_bytes,
            host_bytes=host.CUDA_BASELINE_BYTES
            + max(kept_bytes + staged, host.loading_bytes(strategy, self.num_parameters)),
            pinned_bytes=found.pinned_bytes + staged,
            managed_bytes=managed_bytes,
            disk_bytes=disk_bytes,
            phase=found.phase,
            by_category=found.by_category | parts | {"context": card.context_bytes},
            largest=found.largest,
        )

    def _averaging(self, strategy: Strategy) -> Averaging:
        """Return in what several processes average the gradients of a strategy."""
        if strategy not in self._averagings:
            model = self._on_meta(self.config)
            change(model, strategy)
            parameters = list(model.parameters())
            weights = [one.nbytes for one in [*parameters, *model.buffers()]]
            self._averagings[strategy] = averaging_of(weights, [one.nbytes for one in parameters if one.requires_grad])
        return self._averagings[strategy]

    def _of_sharded(
        self, strategy: Strategy, micro_batch: int, seq_len: int, accumulating: bool, world_size: int, card: Card,
        whole: bool, staged: int,
    ) -> MemoryEstimate:  # fmt: skip
        found = self._sharded.peaks(
            strategy, micro_batch, seq_len, accumulating=accumulating, world_size=world_size, card=card, whole=whole
        )
        disk = deepspeed.states(strategy, self.num_parameters, self.largest_layer, world_size).disk_bytes
        return self._on_gpu(found, strategy, card, found.host_bytes + found.pinned_bytes, staged, disk_bytes=disk)

    def _trace_micro_batch(self, strategy: Strategy, micro_batch: int, seq_len: int) -> MicroBatch:
        make_model, make_batch = lambda: self.make_model(self.config), self._batches(micro_batch, seq_len, self.packs)
        make = functools.partial(trace_micro_batch, make_model, self.task, make_batch, strategy)
        with told_in_a_line(tr("its step cannot be traced")):
            return self._keep(MicroBatch, (strategy.model_dump_json(), micro_batch, seq_len), make)

    def timeline(
        self, strategy: Strategy, micro_batch: int, seq_len: int, *, accumulating: bool, world_size: int = 1,
        card: Card = A100,
    ) -> Timeline:  # fmt: skip
        """Return the memory of one step over time, of the whole model."""
        if strategy.needs_deepspeed and strategy.device == "cuda":
            asked: dict[str, Any] = {"accumulating": accumulating, "world_size": world_size, "card": card}
            return timeline_of(self._sharded.last_step(strategy, micro_batch, seq_len, **asked))
        key = self._key(strategy, seq_len, accumulating, card)
        if strategy.stream:
            stream = self._streamed.step(key[0], Shape.of(micro_batch, key))
        else:
            stream = self._trace(key, depth_of(self.config), micro_batch)
        return timeline_of(on_card(stream, card))

    def _key(self, strategy: Strategy, seq_len: int, accumulating: bool, card: Card) -> Key:
        """Return what shapes a trace. Whether a GPU has a kernel for packed windows hangs on age and precision."""
        on_gpu, dtype = strategy.device == "cuda", DTYPES[strategy.precision]
        packs = not on_gpu or attention.packs_at(card.capability, dtype, self.config, seq_len)
        return _traced(strategy), seq_len, accumulating, packs and self.packs

    def _scaling_or_why(self, key: Key) -> Scaling | BigqaError:
        try:
            return self._scaling(key)
        except BigqaError as error:
            return error

    def _scaling(self, key: Key) -> Scaling:
        def trace(layers: int, micro_batch: int) -> Stream:
            return self._trace(key, layers, micro_batch)

        made_on_host = key[0].device == "cuda"
        return Scaling(trace, depth_of(self.config), self.depths, made_on_host=made_on_host)

    def _trace(self, key: Key, layers: int, micro_batch: int) -> Stream:
        strategy, seq_len, accumulating, packed = key
        config = self.config if layers == depth_of(self.config) else with_layers(self.config, layers)
        make_model, make_batch = lambda: self.make_model(config), self._batches(micro_batch, seq_len, packed)
        make = functools.partial(trace_step, make_model, self.task, make_batch, strategy, accumulating=accumulating)
        with told_in_a_line(tr("its step cannot be traced")):
            return self._keep(Stream, (strategy.model_dump_json(), *key[1:], layers, micro_batch), make)

    def _batches(self, micro_batch: int, seq_len: int, packed: bool) -> Callable[[], Any]:
        return lambda: self.task.example(micro_batch, seq_len, packed=packed)

    def _count(self) -> tuple[int, int]:
        if self._counts is None:
            model = self._on_meta(self.config)
            children = [sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()]
            self._counts = sum(p.numel() for p in model.parameters()), max(children)
        return self._counts


def _traced(strategy: Strategy) -> Strategy:
    """Return the axes that shape a trace: what DeepSpeed does to the states is added afterwards."""
    update: dict[str, Any] = {"micro_batch": None, "seq_len": None}
    if strategy.needs_deepspeed:
        update |= {"zero_stage": 0, "offload_optimizer": "none", "offload_parameters": "none", "precision": "bf16-sr"}
    if strategy.optimizer == "paged-adamw8bit" and strategy.device == "cpu":
        update["optimizer"] = "adamw8bit"
    return strategy.model_copy(update=update)


def _on_cpu(found: Footprint, strategy: Strategy, states: deepspeed.States | None) -> MemoryEstimate:
    resident = host.resident_bytes(found.allocated_bytes, strategy) + found.kept_bytes + found.pinned_bytes
    if states is not None:  # what is offloaded from a CPU is in the same memory
        resident += states.host_bytes + states.pinned_bytes
    return MemoryEstimate(
        allocated_bytes=found.allocated_bytes,
        reserved_bytes=found.allocated_bytes,
        device_bytes=0,
        host_bytes=resident,
        pinned_bytes=0,
        disk_bytes=states.disk_bytes if states else found.disk_bytes,
        phase=found.phase,
        by_category=found.by_category | {"process": resident - found.allocated_bytes},
        largest=found.largest,
    )
