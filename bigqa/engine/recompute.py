"""Recomputation in the backward pass instead of stored activations. In: a model and how much. Out: the model, changed.

Full: a layer keeps its input alone. Selective: it keeps the results of matrix products and of attention as well, and
recomputes what is cheap: norms, activations, dropout. Non-reentrant, per layer, through the library's own hooks.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from bigqa.errors import BigqaError
from bigqa.strategy import Recompute

aten = torch.ops.aten
COSTLY = {
    aten.mm.default,
    aten.addmm.default,
    aten.linear.default,
    aten._flash_attention_forward.default,
    aten._efficient_attention_forward.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}
"""Not batched products: they are attention's own on a CPU, which works on them in place."""


def apply(model: nn.Module, mode: Recompute) -> None:
    """Let every layer of a model recompute. Raises: BigqaError where the model cannot."""
    if mode == "none":
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise BigqaError(f"{type(model).__name__} cannot recompute its layers; choose a strategy without recomputation")
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    if hasattr(model, "activation_checkpointing_enable"):  # transformers 5.23 renames it
        model.activation_checkpointing_enable(options)  # type: ignore[operator]
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[operator]
    model.config.use_cache = False  # type: ignore[union-attr]


def _policy(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
