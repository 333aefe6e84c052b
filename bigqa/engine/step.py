"""One optimizer step: forward and backward over micro-batches, clipping, AdamW. The trainer runs exactly this.

In: the parts that `build` made and this process's micro-batches. Out: this process's share of the loss, and the norm.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigqa.engine.precision import Weights
from bigqa.engine.scaling import LossScaler
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
    scaler: LossScaler | None = None
    """For fp16 alone."""


def train_step(parts: Parts, batches: list[Batch], num_windows: int) -> tuple[Tensor, Tensor]:
    """Run one optimizer step over this process's micro-batches.

    `num_windows`: windows of the step over all processes; the step's loss is the mean over them.
    Returns: this process's part of that loss, and the gradient norm before clipping (scalars, on the device).
    """
    loss = accumulate(parts, batches, num_windows)
    parts.weights.gather_gradients()
    gradients = [p.grad for p in parts.weights.masters.values() if p.grad is not None]
    if parts.scaler is not None:
        torch._foreach_mul_(gradients, 1.0 / parts.scaler.scale)
    norm = clip_gradients(gradients, parts.clip)
    finite = parts.scaler is None or bool(torch.isfinite(norm))
    if parts.scaler is not None:
        parts.scaler.update(finite=finite)
    if finite:
        parts.optimizer.step()
        parts.weights.publish()
    del gradients
    parts.optimizer.zero_grad(set_to_none=True)
    return loss, norm


def accumulate(parts: Parts, batches: list[Batch], num_windows: int) -> Tensor:
    """Leave the gradient of the step's mean loss in the model; return this process's part of that loss."""
    total = torch.zeros((), device=batches[0]["input_ids"].device)
    scale = 1.0 if parts.scaler is None else parts.scaler.scale
    for index, batch in enumerate(batches):
        with _gradient_sync(parts.model, is_last=index == len(batches) - 1):
            # A process that has no window of a small last batch still takes part in the averaging.
            share = batch.get("weight", 1.0)
            loss = parts.task.loss_sum(parts.model, batch) * share / num_windows
            # Gradients are averaged over the processes, and are wanted summed.
            (loss * (parts.world_size * scale)).backward()
        total += loss.detach()
    return total


def clip_gradients(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scale gradients, in place, to a global norm of at most `max_norm`; return the norm before that.

    As `torch.nn.utils.clip_grad_norm_`, but with the multi-tensor kernels named: that one refuses tensors without data.
    """
    norms = torch._foreach_norm(gradients, 2.0)
    norm = torch.linalg.vector_norm(torch.stack([value.float() for value in norms]), 2.0)
    torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm


@contextlib.contextmanager
def _gradient_sync(model: nn.Module, *, is_last: bool) -> Iterator[None]:
    no_sync = getattr(model, "no_sync", None)
    with contextlib.nullcontext() if is_last or no_sync is None else no_sync():
        yield
