"""Attention within each window of a packed batch, on a CPU, dropout kept. In: queries, keys, values. Out: the context.

One window at a time: what passes between its products fits the processor's cache. Probabilities are kept for the
backward pass in the precision of the weights, what was dropped by their sign: probabilities have none of their own.

T: tokens of all windows. H: heads. D: size of a head. S: tokens of a window. R: the same, rounded up.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bigqa.engine.bits import draw_seed, dropping_signs

ROW = 32
"""Windows are rounded up to multiples of this: softmax is half as fast on other rows, and products of sizes that come
again find their kernels made."""


STANDS_FOR: ContextVar[int] = ContextVar("STANDS_FOR", default=1)
"""Windows that an operation on tensors without data stands for."""


@dataclass(frozen=True)
class Shape:
    """What may look at what."""

    lengths: tuple[int, ...]
    causal: bool = False
    span: int | None = None
    """Tokens that look at each other are fewer than this apart; none: all of a window."""

    def closed(self, size: int, device: torch.device) -> Tensor | None:
        """Return what a window's tokens may not look at, [S, S]; none: nothing."""
        if not self.causal and self.span is None:
            return None
        ahead = torch.arange(size, device=device)[None, :] - torch.arange(size, device=device)[:, None]
        closed = torch.zeros(size, size, dtype=torch.bool, device=device)
        if self.causal:
            closed |= ahead > 0
        if self.span is not None:
            closed |= ahead.abs() >= self.span
        return closed


def attend(query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, shape: Shape, dropout: float, scale: float) -> Tensor:
    """Return the context, [T, H, D]."""
    context_THD: Tensor = _Attention.apply(query_HTD, key_HTD, value_HTD, shape, dropout, scale)
    return context_THD


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, shape: Shape, dropout: float, scale: float
    ) -> Tensor:
        heads, tokens, size = query_HTD.shape
        seed = 0 if dropout == 0.0 or query_HTD.is_meta else draw_seed()
        context_THD = query_HTD.new_empty(tokens, heads, size)
        kept = query_HTD.new_empty(heads * sum(_row(length) ** 2 for length in shape.lengths))
        scaled_HTD = query_HTD * scale
        for number, window, weights_HRR in _windows(shape, kept, heads):
            query, key, value = (_rows(one[:, window]) for one in (scaled_HTD, key_HTD, value_HTD))
            _probabilities(query, key, shape, window.stop - window.start, weights_HRR)
            used = weights_HRR
            if dropout:
                signs = dropping_signs(weights_HRR.shape, dropout, (seed, number), like=weights_HRR)
                torch.copysign(weights_HRR, signs.view(weights_HRR.dtype), out=weights_HRR)
                used = functional.relu(weights_HRR)
            _write(context_THD[window], torch.bmm(used, value))
        if dropout:
            context_THD *= 1.0 / (1.0 - dropout)
        ctx.save_for_backward(query_HTD, key_HTD, value_HTD, context_THD, kept)
        ctx.options = (shape, dropout, scale)
        return context_THD

    @staticmethod
    def backward(ctx: Any, gradient_THD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradient of softmax needs, for each row, the sum of P dP: it is that of the context and its gradient."""
        query_HTD, key_HTD, value_HTD, context_THD, kept = ctx.saved_tensors
        shape, dropout, scale = ctx.options
        sums_HT1 = (gradient_THD * context_THD).sum(-1, keepdim=True, dtype=torch.float32).transpose(0, 1)
        sums_HT1 = sums_HT1.to(query_HTD.dtype)
        gradient_HTD = (gradient_THD * (1.0 / (1.0 - dropout)) if dropout else gradient_THD).transpose(0, 1)
        d_query, d_key, d_value = (torch.empty_like(context_THD) for _ in range(3))
        for _, window, weights_HRR in _windows(shape, kept, query_HTD.shape[0]):
            query, key, value = (_rows(one[:, window]) for one in (query_HTD, key_HTD, value_HTD))
            outer, sums = (_rows(one[:, window]) for one in (gradient_HTD, sums_HT1))
            used = functional.relu(weights_HRR) if dropout else weights_HRR
            _write(d_value[window], torch.bmm(used.transpose(1, 2), outer))
            d_scores = torch.bmm(outer, value.transpose(1, 2))
            if dropout:
                d_scores.mul_(used).addcmul_(weights_HRR.abs(), sums, value=-1)
            else:
                d_scores.sub_(sums).mul_(weights_HRR)
            _write(d_query[window], torch.bmm(d_scores, key))
            _write(d_key[window], torch.bmm(d_scores.transpose(1, 2), query))
        d_query *= scale
        d_key *= scale
        return *(one.transpose(0, 1) for one in (d_query, d_key, d_value)), None, None, None


def _probabilities(query: Tensor, key: Tensor, shape: Shape, length: int, out_HRR: Tensor) -> None:
    """Write softmax(Q K^T), zero for the keys beyond the window."""
    scores_HRR = torch.bmm(query, key.transpose(1, 2))
    scores_HRR[:, :, length:] = float("-inf")
    closed = shape.closed(length, query.device)
    if closed is not None:
        scores_HRR[:, :length, :length].masked_fill_(closed, float("-inf"))
    if not out_HRR.is_meta:  # without data, torch takes the shape to be another
        torch.softmax(scores_HRR, dim=-1, out=out_HRR)


def _rows(window_HSD: Tensor) -> Tensor:
    """Return a window's part by itself, zeros added up to a whole multiple of rows: [H, S, D] -> [H, R, D]."""
    heads, length, size = window_HSD.shape
    rows = window_HSD.new_empty(heads, _row(length), size)
    rows[:, :length] = window_HSD
    rows[:, length:] = 0
    return rows


def _write(out_SHD: Tensor, rows_HRD: Tensor) -> None:
    """Put the rows of a window's own tokens in their places."""
    out_SHD.copy_(rows_HRD[:, : out_SHD.shape[0]].transpose(0, 1))


def _row(length: int) -> int:
    return -(-length // ROW) * ROW


def _windows(shape: Shape, kept: Tensor, heads: int) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield (number, tokens, probabilities) of each window; of tensors without data, the first stands for all."""
    begin = place = 0
    for number, length in enumerate(shape.lengths):
        size = heads * _row(length) ** 2
        window = slice(begin, begin + length)
        weights_HRR = kept[place : place + size].view(heads, _row(length), _row(length))
        if kept.is_meta:
            token = STANDS_FOR.set(len(shape.lengths))
            yield number, window, weights_HRR
            STANDS_FOR.reset(token)
            return
        yield number, window, weights_HRR
        begin, place = begin + length, place + size
