"""Puts a step together. In: a model, a task, settings and processes. Out: the parts that `train_step` works on."""

import os
from pathlib import Path

import torch
from torch import nn

from bigqa.engine.optimizers import adamw, undecayed_names
from bigqa.engine.precision import Precision, Weights
from bigqa.engine.processes import Processes
from bigqa.engine.step import Parts
from bigqa.settings import Settings
from bigqa.tasks.base import Task


def choose_precision(asked: str, device: torch.device) -> Precision:
    """Resolve "auto": bf16 where the hardware multiplies in it, else fp32."""
    if asked != "auto":
        return "bf16" if asked == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if _cpu_multiplies_bf16() else "fp32"


def build(model: nn.Module, task: Task, settings: Settings, processes: Processes) -> Parts:
    """Place the model, make its masters and optimizer, and wrap it for the processes."""
    precision = choose_precision(settings.precision, processes.device)
    undecayed = undecayed_names(model)
    weights = Weights(model.to(processes.device), precision)
    optimizer = adamw(
        weights.masters, undecayed, lr=settings.lr, weight_decay=settings.weight_decay, eps=settings.adam_eps
    )
    return Parts(
        model=processes.wrap(model),
        weights=weights,
        optimizer=optimizer,
        task=task,
        clip=settings.clip,
        world_size=processes.world_size,
    )


def share_of_batch(settings: Settings, world_size: int) -> int:
    """Return the micro-batch: the one asked for, or a process's whole share of the global batch."""
    share = -(-settings.global_batch // world_size)
    return min(settings.micro_batch or share, share)


def _cpu_multiplies_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if os.name != "posix" or not cpuinfo.is_file():
        return False
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace")
    return "avx512_bf16" in flags or "amx_bf16" in flags
