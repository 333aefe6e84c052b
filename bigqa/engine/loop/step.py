"""One optimizer step: forward and backward over micro-batches, then the update. The trainer runs exactly this.

In: the parts that `build` made and this process's micro-batches. Out: this process's share of the loss, and the norm.
Each micro-batch draws its random numbers from a seed of its own, so that another order of the computation draws alike.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bigqa.engine.loop.order import mix_seed
from bigqa.engine.offload import ActivationOffload
from bigqa.engine.optim.update import Update
from bigqa.tasks.base import Batch, Task


class Passes(Protocol):
    """Another order of a step's computation."""

    def accumulate(self, task: Task, batches: list[Batch], num_windows: int) -> Tensor:
        """Do as `accumulate` does."""
        ...


@dataclass(kw_only=True)
class Parts:
    """What a step works on."""

    model: nn.Module
    """As it is called: wrapped for several processes, or DeepSpeed's engine."""
    update: Update
    task: Task
    packs: bool = False
    """Whether the model takes windows packed end to end."""
    offload: ActivationOffload | None = None
    """Of what the forward pass keeps; none: it stays where it is."""
    passes: Passes | None = None
    """What takes all micro-batches through one layer after the other; none: each goes through all layers."""

    def let_go(self) -> None:
        """Forget what steps alone want: the wrapped model and its buckets, what moves tensors, and pinned memory."""
        self.offload = self.passes = None
        self.model = nn.Module()


def train_step(parts: Parts, batches: list[Batch], num_windows: int) -> tuple[Tensor, Tensor]:
    """Run one optimizer step over this process's micro-batches.

    `num_windows`: windows of the step over all processes; the step's loss is the mean over them.
    Returns: this process's part of that loss, and the gradient norm before clipping (scalars, on the device).
    """
    if parts.passes is not None:
        loss = parts.passes.accumulate(parts.task, batches, num_windows)
    else:
        loss = accumulate(parts, batches, num_windows)
    return loss, parts.update.step()


def accumulate(parts: Parts, batches: list[Batch], num_windows: int) -> Tensor:
    """Leave the gradient of the step's mean loss in the model; return this process's part of that loss."""
    total, seed = torch.zeros((), device=batches[0]["input_ids"].device), torch.initial_seed()
    for index, batch in enumerate(batches):
        draw_for(index, seed)
        with parts.update.micro_batch(is_last=index == len(batches) - 1), _settled(parts.offload):
            with contextlib.nullcontext() if parts.offload is None else parts.offload.keeping():
                loss = part_of_loss(parts.task, parts.model, batch, num_windows)
            parts.update.backward(loss)
        total += loss.detach()
    return total


@contextlib.contextmanager
def _settled(offload: ActivationOffload | None) -> Iterator[None]:
    """Let the offload end with both passes, however they end: copies into memory that is let go of may be on their way.

    A step that lacked memory is followed by saving, which wants what the offload still holds.
    """
    try:
        yield
    finally:
        if offload is not None:
            offload.settle()


def draw_for(index: int, seed: int) -> None:
    """Begin a micro-batch's random numbers. `seed`: the step's, from which the first goes on to draw."""
    if index:
        torch.manual_seed(mix_seed(seed, index))


def part_of_loss(task: Task, model: nn.Module, batch: Batch, num_windows: int) -> Tensor:
    """Return a micro-batch's part of the step's mean loss."""
    # A process that has no window of a small last batch still takes part in the averaging.
    share = batch.get("weight", 1.0)
    return task.loss_sum(model, batch) * share / num_windows
