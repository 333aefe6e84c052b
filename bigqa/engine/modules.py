"""Modules of a model for equal ones that are faster or smaller. In: a model, a device. Out: the model, changed.

GELU's tanh form is one operation instead of eight that each keep their result. Dropout on a CPU draws its numbers from
`engine.bits`, and draws them again in the backward pass instead of keeping a mask.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from bigqa.engine.bits import draw_seed, dropping_signs


def swap(model: nn.Module, device_type: str) -> None:
    """Swap what can be swapped."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
            elif type(child) is nn.Dropout and device_type == "cpu":
                setattr(parent, name, DrawnDropout(child.p))


class DrawnDropout(nn.Dropout):
    """As `nn.Dropout`, for a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements in training."""
        if not self.training or self.p == 0.0:
            return x
        dropped: Tensor = _Drop.apply(x, self.p)
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        ctx.probability, ctx.seed = probability, 0 if x.is_meta else draw_seed()
        return _dropped(x, probability, ctx.seed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _dropped(gradient, ctx.probability, ctx.seed), None


def _dropped(x: Tensor, probability: float, seed: int) -> Tensor:
    kept = dropping_signs(x.shape, 1.0 - probability, (seed,), like=x)
    # All ones where an element is kept, else none: bits are cut out, which needs no conversion.
    kept.bitwise_right_shift_(8 * x.element_size() - 1)
    return kept.bitwise_and_(x.contiguous().view(kept.dtype)).view(x.dtype).mul_(1.0 / (1.0 - probability))
