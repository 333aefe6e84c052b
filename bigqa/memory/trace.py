"""Runs the trainer's own step on tensors without data, and writes down every allocation and free.

In: a function that makes the model, a task, a strategy, a micro-batch's shape. Out: a `Stream`. Tensors live on the
meta device, which needs no GPU, no memory for weights and no compiler; kernels whose choice hangs on the device are
named by the engine (see `engine.attention`), and dropout is turned into the form that the real device uses.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bigqa.engine.attention import kernels as attention
from bigqa.engine.attention.windows import STANDS_FOR
from bigqa.engine.build import change, make_offload, make_update
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.optim.optimizers import parameter_groups, undecayed_names
from bigqa.engine.quantized import QuantizedLinear
from bigqa.memory import scratch, shapes
from bigqa.memory.conditions import collected_on_demand, dropout_of
from bigqa.memory.events import BEFORE, Category, Event, Stream
from bigqa.memory.moments import phases_of, states_of
from bigqa.memory.optimizers import stand_in, state_tensors
from bigqa.memory.work import Work
from bigqa.strategy import Strategy
from bigqa.tasks.base import Batch, Task

IN_PLACE = {
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
}
"""What backward passes do in place."""


def trace_step(
    make_model: Callable[[], nn.Module],
    task: Task,
    make_batch: Callable[[], Batch],
    strategy: Strategy,
    *,
    accumulating: bool,
) -> Stream:
    """Trace an optimizer step in its steady state: the optimizer's state is there from the start.

    `accumulating`: gradients of an earlier micro-batch are there too, as when a step has several. Both are made before
    the step instead of by a step before it, which leaves one pass to trace. `make_model` and `make_batch` are
    called on the meta device.
    """
    recorder = Recorder(on_gpu=strategy.device == "cuda")
    with (
        collected_on_demand(),
        attention.standing_in_for(strategy.device),
        dropout_of(strategy.device),
        recorder,
    ):
        with torch.device("meta"):
            model = make_model().train()
        undecayed = undecayed_names(model)
        recorder.phase = "set-up"
        weights = change(model, strategy)
        optimizers: list[torch.optim.Optimizer] = []

        def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            optimizers.append(stand_in(groups, strategy))
            return optimizers[-1]

        recorder.phase = "states" if recorder.on_gpu else "set-up"
        groups = parameter_groups(weights.masters, undecayed, 0.01)
        update = make_update(model, strategy, weights, make, groups=groups, clip=1.0)
        recorder.phase = "ready" if recorder.on_gpu else "set-up"
        if accumulating:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            recorder.find_added([p.grad for p in model.parameters() if p.grad is not None])
        _mark(recorder, model, optimizers, weights.masters.values() if weights.has_masters else [])
        placed = tuple(dict.fromkeys(recorder.numbers(_in_place_order(model))))
        offload = make_offload(model, strategy)
        parts = Parts(model=model, update=update, task=task, offload=offload)
        gc.collect()
        with torch.device("meta"):
            # All of a step's are on a GPU from its start.
            batches = [make_batch() for _ in range(2 if accumulating and recorder.on_gpu else 1)]
        taken = tuple(dict.fromkeys(recorder.numbers(one for batch in batches for one in batch.values())))
        micro_work = recorder.work = Work()
        recorder.phase = "forward" if recorder.on_gpu else recorder.phase  # the loss is made before the pass begins
        with phases_of(recorder, parts), states_of(recorder, optimizers):
            train_step(parts, batches[:1], 1)
        recorder.closed = True
    stream = recorder.stream(micro_work)
    stream.placed, stream.batch = placed, taken
    stream.offloaded_bytes = 0 if offload is None else offload.host_bytes
    stream.offloaded = () if offload is None else offload.sent
    stream.managed_bytes = sum(getattr(optimizer, "managed_bytes", 0) for optimizer in optimizers)
    return stream


def _mark(
    recorder: "Recorder", model: nn.Module, optimizers: list[torch.optim.Optimizer], masters: Iterable[Tensor]
) -> None:
    """Say what the tensors of a step are for that are there before it."""
    recorder.mark("weights", [*model.parameters(), *model.buffers()])
    packed = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    recorder.mark("weights", [tensor for module in packed for tensor in module.state_tensors()])
    recorder.mark("optimizer", [tensor for optimizer in optimizers for tensor in state_tensors(optimizer)])
    recorder.mark("optimizer", masters)


def _in_place_order(model: nn.Module) -> Iterator[Tensor]:
    """Yield a model's tensors as `Module.to` moves them: those of the modules inside first."""
    for module in model.children():
        yield from _in_place_order(module)
    yield from (one for one in model._parameters.values() if one is not None)
    yield from (one for one in model._buffers.values() if one is not None)
    if isinstance(model, QuantizedLinear):
        yield from model.state_tensors()


class Recorder(TorchDispatchMode):
    """Writes down the birth and the end of every storage, and counts the work of the operations."""

    def __init__(self, *, on_gpu: bool = False) -> None:
        super().__init__()
        self.on_gpu = on_gpu
        self.phase = "model"
        self.events: list[Event] = []
        self.categories: dict[int, Category] = {}
        self.work = Work()
        self.updating = False
        """Whether what runs is the update's."""
        self.closed = False
        """Set at the step's end: what is dropped afterwards is no part of it."""
        self.states: list[tuple[int, tuple[int, ...]]] = []
        self._gradients: set[int] = set()
        self._added_to: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._count = 0
        self._multiplied: set[str] = set()
        """Threads that have a workspace of cuBLAS: it is never given back."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and look at what it made."""
        if self.on_gpu:
            func = self._as_without_a_mode(func, args)
        early = self._run_scratch(scratch.ahead(func, args), func, args, []) if self.on_gpu else []
        result, key = shapes.run(func, args, kwargs or {})
        made = sum(self._see(tensor, func, args) for tensor in self._in_order(func, result))
        self.work.add(func, key, args, result, made)
        if self.on_gpu:
            if func is torch.ops.aten.add_.Tensor and self._gradients:
                self._see_added(args)
            self._see_scratch(func, args, result, early)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch wraps the function above in one that keeps its compiler away, at a tenth of the trace's time.
        return False

    def mark(self, category: Category, tensors: Any) -> None:
        """Say what tensors are for."""
        for tensor in tensors:
            number = self._known.get(tensor.untyped_storage()._cdata)
            if number is not None:
                self.categories[number] = category

    def find_added(self, gradients: list[Tensor]) -> None:
        """Note from now on what is added to gradients of an earlier micro-batch."""
        self._gradients = set(self.numbers(gradients))

    def numbers(self, tensors: Iterable[Tensor]) -> list[int]:
        """Return the storages of tensors."""
        found = (self._known.get(tensor.untyped_storage()._cdata) for tensor in tensors)
        return [number for number in found if number is not None]

    def stream(self, work: Work) -> Stream:
        """Return what was seen."""
        for event in self.events:
            self.categories.setdefault(event.storage, "temporaries")
        _find_activations(self.events, self.categories)
        return Stream(
            events=self.events,
            categories=self.categories,
            flops=work.flops,
            batched_flops=work.batched_flops,
            drawn=work.drawn,
            moved_bytes=work.moved_bytes,
            operations=work.operations,
            step_bytes=self.work.moved_bytes,
            states=self.states,
            added_to=self._added_to,
        )

    def _see(self, tensor: Tensor, func: Any, args: tuple[Any, ...]) -> int:
        if self.on_gpu and not tensor.is_meta:
            return 0  # made in host memory, as modules are that a model makes when it sees its first batch
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return 0
        size_bytes = storage.nbytes()
        if size_bytes == 0:
            return 0
        self._count += 1
        number = self._known[key] = self._count
        name, times = func.overloadpacket.__name__, STANDS_FOR.get()
        rule = scratch.of_some_cards(func, args, tensor) if self.on_gpu else None
        self.events.append(Event(number, size_bytes, self.phase, name, times, self.updating, rule))
        # Half the price of `weakref.finalize`; the reference must be kept for its callback to come.
        self._alive[number] = weakref.ref(storage, lambda _: self._end(key, number))
        return size_bytes

    def _as_without_a_mode(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Return what torch runs where no dispatch mode such as this one looks on: some backward passes work in place.

        Source: torch, `FunctionsManual.cpp`, `areAnyTensorSubclassLike`, as in `gather_backward` and `index_backward`.
        """
        if self._is_added_up(func, args):
            return torch.ops.aten.add_.Tensor
        return func if self.phase != "backward" or torch.is_grad_enabled() else IN_PLACE.get(func, func)

    def _is_added_up(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether autograd, which adds gradients of one tensor up, would do so in place.

        Source: torch, `input_buffer.cpp`, `accumulate`: where it holds the last reference, and not under a dispatch
        mode such as this one. What is left of a storage's references here is the tensor's and the one looked through.
        """
        if func is not torch.ops.aten.add.Tensor or self.phase != "backward" or torch.is_grad_enabled():
            return False
        first, second = args[:2]
        if not isinstance(second, Tensor) or first.shape != second.shape or not first.is_contiguous():
            return False
        storage = first.untyped_storage()
        return storage.nbytes() == first.nbytes and torch._C._storage_Use_Count(storage._cdata) <= 2

    def _in_order(self, func: Any, result: Any) -> Iterator[Tensor]:
        """Yield what an operation made, in the order in which it does: CUDA's dropout has its mask first."""
        made = shapes.tensors_in(result)
        return reversed(list(made)) if func is torch.ops.aten.native_dropout.default else made  # type: ignore[return-value]

    def _see_added(self, args: tuple[Any, ...]) -> None:
        numbers = self.numbers(shapes.tensors_in(args))
        if len(numbers) == 2 and numbers[0] in self._gradients:
            self._added_to[numbers[1]] = numbers[0]

    def _see_scratch(self, func: Any, args: tuple[Any, ...], result: Any, early: list[int]) -> None:
        """Write down what an operation holds beside its results: all at once, and freed in the opposite order.

        `early`: what it had before it made its results.
        """
        name = func.overloadpacket.__name__
        thread = "backward" if self.phase == "backward" else "main"
        if name in scratch.PRODUCTS and thread not in self._multiplied and self.phase not in BEFORE:
            self._multiplied.add(thread)
            self._begin_scratch(scratch.Scratch("workspace"), "workspace")
        held = self._run_scratch(scratch.beside(func, args, result), func, args, early)
        self.events.extend(Event(number, 0, self.phase, "") for number in reversed(held) if number)

    def _run_scratch(self, steps: scratch.Steps, func: Any, args: tuple[Any, ...], held: list[int]) -> list[int]:
        """Write down steps behind others of an operation; return each allocation, zero where it is freed."""
        name = func.overloadpacket.__name__
        for step in steps:
            if isinstance(step, scratch.Scratch):
                held = [*held, self._begin_scratch(step, name)]
            else:
                first = self.numbers(shapes.tensors_in(args[:1])) if isinstance(step, scratch.Moved) else []
                self.events.append(Event(held[step.number], 0, self.phase, "", takes=next(iter(first), 0)))
                held = [*held[: step.number], 0, *held[step.number + 1 :]]
        return held

    def _begin_scratch(self, one: scratch.Scratch, name: str) -> int:
        self._count += 1
        self.events.append(Event(self._count, 1, self.phase, name, of_update=self.updating, scratch=one))
        return self._count

    def _end(self, key: int, number: int) -> None:
        del self._alive[number]
        if not self.closed and self._known.get(key) == number:
            del self._known[key]
            self.events.append(Event(number, 0, self.phase, ""))


def _find_activations(events: list[Event], categories: dict[int, Category]) -> None:
    """What the forward pass made and the backward pass freed was kept for it."""
    born = {event.storage: event.phase for event in events if event.size_bytes}
    for event in events:
        kept = not event.size_bytes and born[event.storage] == "forward" and event.phase == "backward"
        if kept and categories[event.storage] == "temporaries":
            categories[event.storage] = "activations"
