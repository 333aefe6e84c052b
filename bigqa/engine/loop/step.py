"""One optimizer step: forward and backward over micro-batches, then the update. The trainer runs exactly this.

In: the parts that `build` made and this process's micro-batches. Out: this process's share of the loss, and the norm.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigqa.engine.offload import ActivationOffload
from bigqa.engine.optim.update import Update
from bigqa.tasks.base import Batch, Task


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

    def let_go(self) -> None:
        """Forget the wrapped model, with its buckets, and the offload, with pinned memory: no step comes any more."""
        self.offload = None
        self.model = nn.Module()


def train_step(parts: Parts, batches: list[Batch], num_windows: int) -> tuple[Tensor, Tensor]:
    """Run one optimizer step over this process's micro-batches.

    `num_windows`: windows of the step over all processes; the step's loss is the mean over them.
    Returns: this process's part of that loss, and the gradient norm before clipping (scalars, on the device).
    """
    loss = accumulate(parts, batches, num_windows)
    return loss, parts.update.step()


def accumulate(parts: Parts, batches: list[Batch], num_windows: int) -> Tensor:
    """Leave the gradient of the step's mean loss in the model; return this process's part of that loss."""
    total = torch.zeros((), device=batches[0]["input_ids"].device)
    for index, batch in enumerate(batches):
        with parts.update.micro_batch(is_last=index == len(batches) - 1):
            # A process that has no window of a small last batch still takes part in the averaging.
            share = batch.get("weight", 1.0)
            with contextlib.nullcontext() if parts.offload is None else parts.offload.keeping():
                loss = parts.task.loss_sum(parts.model, batch) * share / num_windows
            parts.update.backward(loss)
            if parts.offload is not None:
                parts.offload.settle()
        total += loss.detach()
    return total
