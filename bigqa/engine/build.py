"""Puts a step together. In: a model, a task, a strategy and settings. Out: the parts that `train_step` works on."""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from bigqa.engine import adapters, attention, recompute
from bigqa.engine.optimizers import make_optimizer, parameter_groups, undecayed_names
from bigqa.engine.precision import Weights
from bigqa.engine.processes import Processes
from bigqa.engine.scaling import LossScaler
from bigqa.engine.step import Parts
from bigqa.errors import BigqaError
from bigqa.settings import Settings
from bigqa.strategy import Precision, Strategy
from bigqa.tasks.base import Task


def choose_precision(asked: str, device: torch.device) -> Precision:
    """Resolve "auto": bf16 where the hardware multiplies in it, else fp32."""
    if asked != "auto":
        return {"bf16": "bf16", "fp16": "fp16"}.get(asked, "fp32")  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def strategy_of(settings: Settings, device: torch.device) -> Strategy:
    """Return the strategy that a plan or `--strategy` gave, else the plain one in the precision asked for."""
    kind: Literal["cuda", "cpu"] = "cuda" if device.type == "cuda" else "cpu"
    if settings.strategy is not None:
        return settings.strategy.model_copy(update={"device": kind})
    return Strategy(precision=choose_precision(settings.precision, device), device=kind)


def not_built(strategy: Strategy) -> str | None:
    """Say which axis of a strategy the engine does not have; none where it can run."""
    missing = {
        "stochastic rounding": strategy.precision == "bf16-sr",
        "gradient release": strategy.release,
        "activation offload": strategy.activation_offload,
        "ZeRO": strategy.zero_stage > 0,
        "4-bit weights": strategy.adapters == "qlora",
    }
    return next((name for name, wanted in missing.items() if wanted), None)


def prepare(model: nn.Module, strategy: Strategy) -> Weights:
    """Change a model, already on its device, as a strategy asks; return its weights as the optimizer sees them.

    Trainer and predictor share this. Raises: BigqaError where the engine does not have an axis.
    """
    missing = not_built(strategy)
    if missing:
        raise BigqaError(f"this version predicts {missing} and cannot train with it yet; choose another strategy")
    return change(model, strategy)


def change(model: nn.Module, strategy: Strategy) -> Weights:
    """Apply the axes that change the model."""
    attention.use(model)
    adapters.apply(model, strategy.adapters)
    recompute.apply(model, strategy.recompute)
    return Weights(model, strategy.precision)


def build(model: nn.Module, task: Task, settings: Settings, processes: Processes) -> Parts:
    """Place the model, make its masters and optimizer, and wrap it for the processes."""
    strategy = strategy_of(settings, processes.device)
    undecayed = undecayed_names(model)
    weights = prepare(model.to(processes.device), strategy)
    groups = parameter_groups(weights.masters, undecayed, settings.weight_decay)
    return Parts(
        model=processes.wrap(model),
        weights=weights,
        optimizer=make_optimizer(strategy.optimizer, groups, lr=settings.lr, eps=settings.adam_eps),
        task=task,
        clip=settings.clip,
        world_size=processes.world_size,
        scaler=LossScaler() if strategy.precision == "fp16" else None,
    )


def share_of_batch(settings: Settings, world_size: int) -> int:
    """Return the micro-batch: the one asked for, or a process's whole share of the global batch."""
    share = -(-settings.global_batch // world_size)
    return min(settings.micro_batch or share, share)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products."""
    cpuinfo = Path("/proc/cpuinfo")
    if os.name != "posix" or not cpuinfo.is_file():
        return False
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace")
    return "avx512_bf16" in flags or "amx_bf16" in flags
