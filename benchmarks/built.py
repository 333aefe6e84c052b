"""What a run built and did, told from its parts and not from its settings. In: runs under `watched`. Out: `Start`s.

What a model's forward pass was given, and what the step was made of, are looked at as the first step is made. Used by
`benchmarks.strategy_worker` and by tests.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bigqa.engine.loop import fit
from bigqa.engine.loop.step import Parts
from bigqa.engine.loop.training import Training
from bigqa.engine.optim.update import Update
from bigqa.engine.quantized import QuantizedLinear
from bigqa.engine.stream.host_steps import RandomSteps
from bigqa.engine.stream.update import StreamedUpdate

Facts = dict[str, Any]


@dataclass(kw_only=True)
class Start:
    """One start of a run: a resumed run has several."""

    update: Update
    windows: list[int] = field(default_factory=list)
    """Of each forward pass of training, as its tokens tell: each window begins with [CLS]."""
    tokens: list[int] = field(default_factory=list)
    """Of each forward pass of training, padding included."""
    recorded: list[int] = field(default_factory=list)
    """Steps that the recorder was told, in order, repeated ones too; counted from 1."""
    facts: Facts = field(default_factory=dict)
    """What the first step was seen to do, and what it was made of; none where it was not finished."""


@contextlib.contextmanager
def watched() -> Iterator[list[Start]]:
    """Watch the runs of this process."""
    starts: list[Start] = []
    feed, step = Training.feed, fit.train_step

    def noted_feed(training: Training) -> Any:
        starts.append(_begun(training))
        return feed(training)

    def noted_step(parts: Parts, *words: Any) -> Any:
        if starts[-1].facts:
            return step(parts, *words)
        found, starts[-1].facts = _looked_at(parts, lambda: step(parts, *words))
        return found

    Training.feed, fit.train_step = noted_feed, noted_step  # type: ignore[method-assign]
    try:
        yield starts
    finally:
        Training.feed, fit.train_step = feed, step  # type: ignore[method-assign]


def _begun(training: Training) -> Start:
    start = Start(update=training.parts.update)
    record = training.recorder.step

    def noted_record(told: dict[str, Any]) -> None:
        start.recorded.append(told["step"])
        record(told)

    def noted_forward(model: nn.Module, _: Any, inputs: dict[str, Tensor]) -> None:
        if model.training:
            ids = inputs["input_ids"]
            start.windows.append(int((ids == ids.view(-1)[0]).sum()))
            start.tokens.append(ids.numel())

    training.recorder.step = noted_record  # type: ignore[method-assign]
    training.parts.model.register_forward_pre_hook(noted_forward, with_kwargs=True)
    return start


def _looked_at(parts: Parts, step: Callable[[], Any]) -> tuple[Any, Facts]:
    """Make a step; return what it gave, and what it was seen to do."""
    update, gradients = parts.update, 0

    def noted_update() -> Tensor:
        nonlocal gradients
        parameters = {*parts.model.parameters(), *_masters(update).values()}
        gradients = sum(parameter.grad is not None for parameter in parameters)
        return type(update).step(update)

    update.step = noted_update  # type: ignore[method-assign]
    try:
        with FlopCounterMode(display=False) as counter:
            found = step()
    finally:
        del update.step  # the class's own is back
    # Recomputed products count; gradients are those that were there when all micro-batches were through.
    return found, _facts(parts) | {"flops": counter.get_total_flops(), "gradients": gradients}


def _masters(update: Update) -> Mapping[str, nn.Parameter]:
    return update.weights.masters if hasattr(update, "weights") else {}


def _facts(parts: Parts) -> Facts:
    """Return what a step is made of, after the first one."""
    update, engine = parts.update, getattr(parts.update, "engine", None)
    optimizers, kept, masters = _of_stream(update) if isinstance(update, StreamedUpdate) else _of_optimizers(update)
    moments = [state["state1"] if "state1" in state else state["exp_avg"] for state in kept]
    trained = {name: p for name, p in parts.model.named_parameters() if p.requires_grad}
    return {
        "update": type(update).__name__,
        "optimizer": type(optimizers[0]).__name__,
        "optimizers": len(optimizers),
        "moments": _dtypes(moments),
        "moment_elements": sum(moment.numel() for moment in moments),
        "weights": _dtypes(trained.values()),
        "masters": _dtypes(master for master in masters if not any(master is p for p in trained.values())),
        "trained": sorted(trained),
        "trained_elements": sum(getattr(p, "ds_numel", p.numel()) for p in trained.values()),
        "held_elements": sum(getattr(p, "ds_tensor", p).numel() for p in trained.values()),
        "zero_stage": 0 if engine is None else engine.zero_optimization_stage(),
        "offloaded_bytes": 0 if parts.offload is None else parts.offload.host_bytes,
        "quantized": sum(isinstance(module, QuantizedLinear) for module in parts.model.modules()),
    }


def _of_optimizers(update: Update) -> tuple[list[Any], list[Any], list[Tensor]]:
    """Return an update's optimizers, the states that they keep, and its masters."""
    engine = getattr(update, "engine", None)
    together = update.optimizer if engine is None else engine.optimizer.optimizer
    optimizers = list(getattr(together, "single", {}).values()) or [together]
    kept = [state for one in optimizers for state in one.state.values() if state]
    return optimizers, kept, list(_masters(update).values())


def _of_stream(update: StreamedUpdate) -> tuple[list[Any], list[Any], list[Tensor]]:
    """Return the same of streamed layers; for masters what they keep beside the weights."""
    weights, steps = update.placed.weights.values(), update.steps
    kept = list(steps.optimizer.state.values()) if isinstance(steps, RandomSteps) else [one.states for one in weights]
    return [steps], kept, [one.rest for one in weights if one.rest is not None]


def _dtypes(tensors: Iterable[Tensor]) -> list[str]:
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
