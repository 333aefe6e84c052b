"""Recomputation in the backward pass instead of stored activations. In: a model and how much. Out: the model, changed.

Full: a layer keeps its input alone. Selective: it keeps the results of matrix products and of attention as well, and
recomputes what is cheap: norms, activations, dropout. Non-reentrant, per layer, through the library's own hooks.
"""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from bigqa.errors import BigqaError
from bigqa.language import tr
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
        raise BigqaError(
            tr("{kind} cannot recompute its layers; choose a strategy without recomputation", kind=type(model).__name__)
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = contexts
    if hasattr(model, "activation_checkpointing_enable"):  # transformers 5.23 renames it
        model.activation_checkpointing_enable(options)  # type: ignore[operator]
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[operator]


def contexts() -> tuple[Any, Any]:
    """Return what selective recomputation enters around a layer's forward pass, and around its recomputation."""
    keeping, kept = create_selective_checkpoint_contexts(_policy)
    after: list[Any] = []
    return _Both(keeping, _Noting(after)), _Both(kept, _Advancing(after))


class _Both:
    """Two modes entered together, the second on top."""

    def __init__(self, below: TorchDispatchMode, above: TorchDispatchMode) -> None:
        self.below, self.above = below, above

    def __enter__(self) -> None:
        self.below.__enter__()
        self.above.__enter__()

    def __exit__(self, *problem: Any) -> None:
        self.above.__exit__(*problem)
        self.below.__exit__(*problem)


class _Noting(TorchDispatchMode):
    """Writes down where the generator is after each kept operation that draws from it."""

    def __init__(self, after: list[Any]) -> None:
        super().__init__()
        self.after = after

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation."""
        result = func(*args, **(kwargs or {}))
        if _is_kept_draw(func, args):
            self.after.append(_position(args[0].device))
        return result


class _Advancing(TorchDispatchMode):
    """Puts the generator where it was after a kept operation, whose result comes back without a draw.

    Else every later dropout of the layer would draw another mask than it did in the forward pass.
    """

    def __init__(self, after: list[Any]) -> None:
        super().__init__()
        self.after = after

    def __enter__(self) -> Any:
        """Begin a recomputation, at the first draw."""
        self.positions = iter(self.after)
        return super().__enter__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take the operation's kept result, or run it."""
        result = func(*args, **(kwargs or {}))
        if _is_kept_draw(func, args):
            _move(args[0].device, next(self.positions))
        return result


def _is_kept_draw(func: Any, args: tuple[Any, ...]) -> bool:
    return func in COSTLY and torch.Tag.nondeterministic_seeded in func.tags and not args[0].is_meta


def _position(device: torch.device) -> Any:
    """Return where a device's generator is: on a GPU its offset, which costs no copy."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index].get_offset()
    return torch.get_rng_state()


def _move(device: torch.device, position: Any) -> None:
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].set_offset(position)
    else:
        torch.set_rng_state(position)


def _policy(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
