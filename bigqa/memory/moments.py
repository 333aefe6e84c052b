"""When what happens in a traced step: its phases, and when a first step makes the states of its optimizers.

In: a recorder, the parts of a step. Out: blocks of code in which the recorder knows.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from bigqa.engine.loop.step import Parts
from bigqa.engine.optim.rounding import RoundedAdamW
from bigqa.memory.events import Category, Event
from bigqa.memory.optimizers import state_tensors
from bigqa.memory.work import Work


class Noting(Protocol):
    """What a recorder is told."""

    phase: str
    work: Work
    updating: bool
    events: list[Event]
    states: list[tuple[int, tuple[int, ...]]]

    def mark(self, category: Category, tensors: Any) -> None:
        """Say what tensors are for."""

    def numbers(self, tensors: Any) -> Any:
        """Return the numbers of their storages."""


@contextlib.contextmanager
def phases_of(recorder: Noting, parts: Parts) -> Iterator[None]:
    """Name the phases of a step by hooks on its parts, so that the step itself stays as it is."""
    update, weights, optimizer, task = parts.update, parts.update.weights, parts.update.optimizer, parts.task
    clip, gather, step, loss_sum = update.step, weights.gather_gradients, optimizer.step, task.loss_sum

    def enter(phase: str, function: Callable[..., Any], after: str | None = None) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            recorder.phase = phase
            result = function(*args, **options)
            recorder.phase = after or phase
            return result

        return wrapped

    release: Any = getattr(update, "release", None)
    of_update = Work()

    def clip_and_step() -> Tensor:
        recorder.phase = "clip"
        recorder.work, recorder.updating = of_update, True
        return clip()

    def released(*args: Any) -> None:
        # Within the backward pass, but once in a step, however many micro-batches it has.
        of_micro_batch = recorder.work
        recorder.work, recorder.updating = of_update, True
        release(*args)
        recorder.work, recorder.updating = of_micro_batch, False

    def gather_and_mark() -> None:
        recorder.mark("gradients", [p.grad for p in parts.model.parameters() if p.grad is not None])
        gather()
        recorder.mark("gradients", [p.grad for p in weights.masters.values() if p.grad is not None])

    update.step = clip_and_step  # type: ignore[method-assign]
    if release:
        vars(update)["release"] = released
    weights.gather_gradients = gather_and_mark  # type: ignore[method-assign]
    optimizer.step = enter("optimizer", step)  # type: ignore[method-assign]
    task.loss_sum = enter("forward", loss_sum, "backward")  # type: ignore[method-assign]
    try:
        yield
    finally:
        del update.step, weights.gather_gradients, optimizer.step, task.loss_sum
        vars(update).pop("release", None)


@contextlib.contextmanager
def states_of(recorder: Noting, optimizers: list[torch.optim.Optimizer]) -> Iterator[None]:
    """Note when a first step makes states: when an optimizer steps; one of ours, when a parameter's turn comes."""

    def made(make: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(parameter: Tensor) -> Any:
            state = make(parameter)
            tensors = [value for value in state.values() if isinstance(value, Tensor)]
            recorder.states.append((len(recorder.events), tuple(recorder.numbers(tensors))))
            return state

        return wrapped

    def noted(optimizer: torch.optim.Optimizer, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            recorder.states.append((len(recorder.events), tuple(recorder.numbers(state_tensors(optimizer)))))
            return step(*args, **options)

        return wrapped

    steps = [optimizer.step for optimizer in optimizers]
    for optimizer, step in zip(optimizers, steps, strict=True):
        if isinstance(optimizer, RoundedAdamW):
            vars(optimizer)["make_state"] = made(optimizer.make_state)
        else:
            optimizer.step = noted(optimizer, step)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for optimizer, step in zip(optimizers, steps, strict=True):
            optimizer.step = step  # type: ignore[method-assign]
            vars(optimizer).pop("make_state", None)
