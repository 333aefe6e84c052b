"""AdamW as published: decay not applied to biases and norms, linear warm-up and decay of the learning rate.

In: a model's parameters by name and the run's settings. Out: a torch optimizer whose implementation is named.
"""

from collections.abc import Mapping

import torch
from torch import nn

Parameters = Mapping[str, nn.Parameter]


def undecayed_names(model: nn.Module) -> set[str]:
    """Return the names of biases and of everything that a normalisation layer owns."""
    names = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    for prefix, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            names |= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return names


def adamw(
    parameters: Parameters, undecayed: set[str], *, lr: float, weight_decay: float, eps: float
) -> torch.optim.Optimizer:
    """Build fused AdamW in two groups.

    The implementation is named, never left to a default: the predictor must run the same one.
    """
    decayed = [parameter for name, parameter in parameters.items() if name not in undecayed]
    others = [parameter for name, parameter in parameters.items() if name in undecayed]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, eps=eps, betas=(0.9, 0.999), fused=True)


def linear_rate(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the factor of the peak learning rate for a step (counted from 0).

    It rises linearly over the warm-up and falls linearly to zero at `num_steps`, as in BERT's published code.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup_steps))
