"""The loss of a large vocabulary in pieces, forward and backward, exact. In: hidden states, the head. Out: losses.

The logits of all tokens are never there at once: so many rows of them as fit into a fixed size, once in the forward
pass and once more in the backward pass. N: tokens that are learned. H: hidden size. V: vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bigqa.tasks.base import standing_for

PIECE_ELEMENTS = 2**24
"""Logits that are there at once: 64 MiB in fp32, whatever the vocabulary."""


def head_losses(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, label_N: Tensor) -> Tensor:
    """Return each token's cross-entropy in fp32, [N]."""
    losses: Tensor = _HeadLosses.apply(hidden_NH, weight_VH, bias_V, label_N)
    return losses


def pieces(rows: int, vocabulary: int, *, without_data: bool = False) -> Iterator[slice]:
    """Yield parts of so many rows that their logits fit; of tensors without data, the first stands for all."""
    size = max(1, PIECE_ELEMENTS // vocabulary)
    if without_data and rows > size:
        with standing_for(-(-rows // size)):
            yield slice(0, size)
        return
    yield from (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(hidden, weight, bias).float()


def _losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor) -> Tensor:
    return functional.cross_entropy(_logits(hidden, weight, bias), label, reduction="none")


def _d_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of logits: the softmax, less one at the label, by the gradient of the loss."""
    shares = _logits(hidden, weight, bias).softmax(-1)
    shares.scatter_add_(1, label[:, None], shares.new_full((len(label), 1), -1.0))
    return (shares * gradient[:, None]).to(weight.dtype)


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, label_N: Tensor) -> Tensor:
        losses_N = torch.empty(len(label_N), dtype=torch.float32, device=hidden_NH.device)
        for part in pieces(len(label_N), len(weight_VH), without_data=label_N.is_meta):
            losses_N[part] = _losses(hidden_NH[part], weight_VH, bias_V, label_N[part])
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, label_N)
        return losses_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of hidden states, weight and bias."""
        hidden_NH, weight_VH, bias_V, label_N = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        d_hidden = torch.empty_like(hidden_NH) if wants_hidden else None
        d_weight = torch.zeros_like(weight_VH) if wants_weight else None
        d_bias = torch.zeros_like(bias_V) if wants_bias and bias_V is not None else None
        for part in pieces(len(label_N), len(weight_VH), without_data=label_N.is_meta):
            d_logits = _d_logits(hidden_NH[part], weight_VH, bias_V, label_N[part], gradient_N[part])
            if d_hidden is not None:
                d_hidden[part] = d_logits @ weight_VH
            if d_weight is not None:
                d_weight.addmm_(d_logits.T, hidden_NH[part])
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            del d_logits  # before the next piece's are made
        return d_hidden, d_weight, d_bias, None
