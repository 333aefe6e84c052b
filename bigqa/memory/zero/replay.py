"""A run's first two steps with DeepSpeed, event by event. In: a traced micro-batch, sizes, a strategy. Out: a Device.

Two: the first makes the optimizer's states, and ZeRO-3 only records in its first pass what it later fetches ahead.
"""

from collections.abc import Sequence

from bigqa.engine.zero import Buckets
from bigqa.memory.events import BEFORE
from bigqa.memory.replay import WORKSPACE
from bigqa.memory.zero.device import Device
from bigqa.memory.zero.early import EarlyStages
from bigqa.memory.zero.marks import Mark
from bigqa.memory.zero.third import ThirdStage
from bigqa.memory.zero.trace import MicroBatch
from bigqa.strategy import Strategy

STEPS = 2


def replay(
    traced: MicroBatch, sizes: Sequence[int], strategy: Strategy, world_size: int, buckets: Buckets, *,
    micro_batches: int,
) -> Device:  # fmt: skip
    """Run the first process's steps. `sizes`: of each event of the trace; zero for frees."""
    return _Run(traced, sizes, strategy, world_size, buckets, micro_batches).device


class _Run:
    def __init__(
        self, traced: MicroBatch, sizes: Sequence[int], strategy: Strategy, world_size: int, buckets: Buckets,
        micro_batches: int,
    ) -> None:  # fmt: skip
        self.traced, self.sizes = traced, sizes
        self.events, self.categories = traced.stream.events, traced.stream.categories
        self.device = Device()
        reached = {mark.number for mark in traced.marks if mark.kind == "gradient"}
        unused = frozenset(set(range(len(traced.layout.numels))) - reached)
        make = ThirdStage if strategy.zero_stage == 3 else EarlyStages
        self.stage = make(self.device, traced.layout, strategy, world_size, buckets, unused)
        self.begin = next(i for i, event in enumerate(self.events) if event.phase not in BEFORE)
        self.blocks: dict[int, int] = {}
        self.workspaces: set[str] = set()
        self.stage.start()
        for _ in range(STEPS):
            self._step(micro_batches)

    def _step(self, micro_batches: int) -> None:
        self.device.begin_step()
        size_of = {e.storage: s for e, s in zip(self.events, self.sizes, strict=True) if e.size_bytes}
        batches = [
            self.device.new(size_of[one], "temporaries", "batch")
            for _ in range(micro_batches)
            for one in self.traced.batch
        ]
        for number in range(micro_batches):
            self._micro_batch(boundary=number == micro_batches - 1)
        self.device.phase = "optimizer"
        self.stage.step()
        self.device.free(*batches)

    def _micro_batch(self, *, boundary: bool) -> None:
        self.stage.begin(boundary=boundary)
        marks = iter(self.traced.marks)
        mark = next(marks, None)
        for index in range(self.begin, len(self.events)):
            while mark is not None and mark.before <= index:
                self._mark(mark)
                mark = next(marks, None)
            self._event(index)
        while mark is not None:
            self._mark(mark)
            mark = next(marks, None)
        self.device.phase = "backward"
        self.stage.end_backward()
        self.device.free(*self.blocks.values())
        self.blocks = {}

    def _mark(self, mark: Mark) -> None:
        stage = self.stage
        if mark.kind == "gradient":
            if stage.gradient(mark.number, self.blocks.get(mark.storage, 0)):
                self.blocks.pop(mark.storage, None)
        elif not isinstance(stage, ThirdStage):
            pass
        elif mark.kind == "hold":
            stage.weights.hold(mark.number)
        elif mark.kind == "let-go":
            stage.weights.let_go(mark.number)
        else:
            forward = mark.kind in ("forward", "forward-end")
            if mark.kind in ("forward", "backward"):
                stage.gathering.fetch(mark.number, forward=forward)
            else:
                stage.gathering.release_module(mark.number, forward=forward)

    def _event(self, index: int) -> None:
        event, size = self.events[index], self.sizes[index]
        self.device.phase = event.phase
        if not event.size_bytes:
            self.device.free(self.blocks.pop(event.storage, 0))
        elif event.operation != WORKSPACE:
            self.blocks[event.storage] = self.device.new(size, self.categories[event.storage], event.operation)
        elif event.phase not in self.workspaces:
            self.workspaces.add(event.phase)
            self.device.new(size, "temporaries", WORKSPACE)
