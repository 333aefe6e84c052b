"""One optimizer step: forward and backward over micro-batches, clipping, AdamW. The trainer runs exactly this.

In: the parts that `build` made and this process's micro-batches. Out: this process's share of the loss, and the norm.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigqa.engine.precision import Weights
from bigqa.tasks.base import Batch, Task


@dataclass(kw_only=True)
class Parts:
    """What a step works on."""

    model: nn.Module
    """Perhaps wrapped for several processes; its gradients are then averages over the processes."""
    weights: Weights
    optimizer: torch.optim.Optimizer
    task: Task
    clip: float
    world_size: int = 1


def train_step(parts: Parts, batches: list[Batch], num_windows: int) -> tuple[Tensor, Tensor]:
    """Run one optimizer step over this process's micro-batches.

    `num_windows`: windows of the step over all processes; the step's loss is the mean over them.
    Returns: this process's part of that loss, and the gradient norm before clipping (scalars, on the device).
    """
    loss = accumulate(parts, batches, num_windows)
    parts.weights.gather_gradients()
    norm = nn.utils.clip_grad_norm_(list(parts.weights.masters.values()), parts.clip, foreach=True)
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.weights.publish()
    return loss, norm


def accumulate(parts: Parts, batches: list[Batch], num_windows: int) -> Tensor:
    """Leave the gradient of the step's mean loss in the model; return this process's part of that loss."""
    total = torch.zeros((), device=batches[0]["input_ids"].device)
    for index, batch in enumerate(batches):
        with _gradient_sync(parts.model, is_last=index == len(batches) - 1):
            # A process that has no window of a small last batch still takes part in the averaging.
            share = batch.get("weight", 1.0)
            loss = parts.task.loss_sum(parts.model, batch) * share / num_windows
            # Gradients are averaged over the processes, and are wanted summed.
            (loss * parts.world_size).backward()
        total += loss.detach()
    return total


@contextlib.contextmanager
def _gradient_sync(model: nn.Module, *, is_last: bool) -> Iterator[None]:
    no_sync = getattr(model, "no_sync", None)
    with contextlib.nullcontext() if is_last or no_sync is None else no_sync():
        yield
