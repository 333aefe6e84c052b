"""AdamW as published: decay not applied to biases and norms, linear warm-up and decay of the learning rate.

In: a model's parameters by name and the run's settings. Out: a torch optimizer whose implementation is named.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bigqa.engine.optim.rounding import RoundedAdamW
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.strategy import Strategy

Parameters = Mapping[str, nn.Parameter]
BETAS = (0.9, 0.999)
SHARE = "rate_share"
"""Of a group: what part of the step's learning rate it learns at."""


def undecayed_names(model: nn.Module) -> set[str]:
    """Return the names of biases and of everything that a normalisation layer owns."""
    names = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    for prefix, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            names |= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return names


def parameter_groups(
    parameters: Parameters, undecayed: set[str], weight_decay: float, shares: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return the groups with and without decay; `shares`: of the learning rate, by name, a group for each."""
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for share in sorted(set(shares.values())) if shares else [1.0]:
        groups[True, share] = {"params": [], "weight_decay": weight_decay, SHARE: share}
        groups[False, share] = {"params": [], "weight_decay": 0.0, SHARE: share}
    for name, parameter in parameters.items():
        groups[name not in undecayed, shares[name] if shares else 1.0]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def make_optimizer(strategy: Strategy, groups: list[dict[str, Any]], *, lr: float, eps: float) -> torch.optim.Optimizer:
    """Build AdamW. Its implementation is named, never left to a default: the predictor must know which one runs.

    Raises: BigqaError where bitsandbytes is wanted and missing.
    """
    kind = strategy.optimizer
    if strategy.precision == "bf16-sr":
        return RoundedAdamW(groups, lr=lr, eps=eps, betas=BETAS, eight_bit=kind != "adamw")
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, eps=eps, betas=BETAS, fused=True)
    try:
        from bigqa.engine.optim.eight_bit import PiecewiseAdamW8bit
    except ImportError:
        raise BigqaError(tr("8-bit Adam needs bitsandbytes: pip install 'bigqa[8bit]'")) from None
    optimizer: torch.optim.Optimizer = PiecewiseAdamW8bit(
        groups, lr=lr, eps=eps, betas=BETAS, is_paged=kind == "paged-adamw8bit"
    )
    return optimizer


def linear_rate(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the factor of the peak learning rate for a step (counted from 0).

    It rises linearly over the warm-up and falls linearly to zero at `num_steps`, as in BERT's published code.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup_steps))


def rate_at(schedule: str, step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the factor of the peak learning rate for a step, by a schedule's name; as the library's of those names."""
    if schedule == "linear" or step < warmup_steps:
        return linear_rate(step, num_steps, warmup_steps)
    if schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
