"""One micro-batch as DeepSpeed runs it, without its states. In: a model, a task, a strategy. Out: events and marks.

What DeepSpeed adds is put in by `memory.zero.replay`: how much that is hangs on the number of processes and on where
states are kept, and none of the trace does.
"""

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.attention import kernels as attention
from bigqa.engine.build import change_modules, make_offload
from bigqa.engine.loop.step import Parts, accumulate
from bigqa.engine.optim.optimizers import parameter_groups, undecayed_names
from bigqa.engine.optim.precision import DTYPES, cast
from bigqa.memory.conditions import collected_on_demand, dropout_of
from bigqa.memory.events import Stream
from bigqa.memory.trace import Recorder
from bigqa.memory.work import Work
from bigqa.memory.zero.layout import Layout, layout_of
from bigqa.memory.zero.marks import Kind, Mark, sharded_linear, watch_gradients, watch_modules
from bigqa.strategy import Strategy
from bigqa.tasks.base import Batch, Task


@dataclass(frozen=True)
class MicroBatch:
    """What was traced."""

    stream: Stream
    marks: tuple[Mark, ...]
    layout: Layout
    batch: tuple[int, ...] = field(default=())
    """Storages of the micro-batch itself."""


class _Recorder(Recorder):
    """Writes down marks too, and which weights a recomputation holds for its backward pass.

    It holds them detached (`torch.utils.checkpoint`), so that what DeepSpeed lets go of stays until autograd has used
    it: the weight is then there twice, since its module's backward pass gathers it once more.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        super().__init__(on_gpu=on_gpu)
        self.marks: list[Mark] = []
        self.weights: dict[int, int] = {}
        """Storage -> number of the parameter."""
        self._held: dict[int, weakref.ref[Tensor]] = {}
        self._holds = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and look at whether it detaches a weight."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.detach.default and self.phase == "backward":
            for storage in self.numbers(args[:1]):
                if storage in self.weights:
                    self._hold(self.weights[storage], result)
        return result

    def note(self, kind: Kind, number: int, storage: int = 0) -> None:
        """Write down a mark."""
        self.marks.append(Mark(len(self.events), kind, number, storage))

    def _hold(self, number: int, detached: Tensor) -> None:
        self._holds += 1
        hold = self._holds
        self.note("hold", number)

        def let_go(_: Any) -> None:
            del self._held[hold]
            self.note("let-go", number)

        self._held[hold] = weakref.ref(detached, let_go)


class _Backward:
    """The part of DeepSpeed's update that a micro-batch meets: the loss is scaled by the processes, and for fp16."""

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Hold around a micro-batch."""
        yield

    def backward(self, loss: Tensor) -> None:
        """Add gradients."""
        scaled = loss * 2
        (scaled * 1.0).backward()


def trace_micro_batch(
    make_model: Callable[[], nn.Module], task: Task, make_batch: Callable[[], Batch], strategy: Strategy
) -> MicroBatch:
    """Trace a forward and a backward pass; each gradient is let go of as it is complete."""
    recorder = _Recorder(on_gpu=strategy.device == "cuda")
    linear = sharded_linear() if strategy.zero_stage == 3 else contextlib.nullcontext()
    with collected_on_demand(), attention.standing_in_for(strategy.device), dropout_of(strategy.device), recorder:
        with torch.device("meta"):
            model = make_model().train()
        undecayed = undecayed_names(model)
        change_modules(model, strategy)
        cast(model, DTYPES[strategy.precision])
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        groups = parameter_groups(trained, undecayed, 0.01)
        layout = layout_of(model, groups, next(model.parameters()).element_size())
        note, marks = recorder.note, recorder.marks
        watch_gradients(model, lambda number, gradient: note("gradient", number, recorder.numbers([gradient])[0]))
        if strategy.zero_stage == 3:
            watch_modules(model, note)
            weights = list(model.parameters())
            recorder.weights = dict(zip(recorder.numbers(weights), range(len(weights)), strict=True))
        recorder.mark("weights", [*model.parameters(), *model.buffers()])
        gc.collect()
        recorder.phase = "ready"
        with torch.device("meta"):
            batch = make_batch()
        held = tuple(recorder.numbers(one for one in batch.values() if isinstance(one, Tensor)))
        work = recorder.work = Work()
        recorder.phase = "forward"
        parts = Parts(
            model=model,
            update=_Backward(),  # type: ignore[arg-type]
            task=_then_backward(task, recorder),
            offload=make_offload(model, strategy),
        )
        with linear:
            total = accumulate(parts, [batch], 1)
        recorder.closed = True
        del total
    for mark in marks:
        if mark.kind == "gradient":
            recorder.categories[mark.storage] = "gradients"
    stream = recorder.stream(work)
    stream.offloaded = () if parts.offload is None else parts.offload.sent
    return MicroBatch(stream, tuple(marks), layout, held)


def _then_backward(task: Task, recorder: Recorder) -> Any:
    """Return a task whose loss begins the backward pass."""

    class Noted:
        def loss_sum(self, *args: Any) -> Tensor:
            loss: Tensor = task.loss_sum(*args)
            recorder.phase = "backward"
            return loss

    return Noted()
