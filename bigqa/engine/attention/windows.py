"""Attention within each window of a packed batch, on a CPU, dropout kept. In: queries, keys, values. Out: the context.

One window at a time: what passes between its products fits the processor's cache. Probabilities are kept for the
backward pass in the precision of the weights, what was dropped by their sign: probabilities have none of their own.

Queries, keys and values are laid out anew once, for all windows: the rows of a window lie together, head by head, and
are rounded up. So products read and write them where they are, with few small operations between the large ones.

T: tokens of all windows. H: heads. D: size of a head. S: a window's tokens. R: its rows, the tokens rounded up.
L: rows of all windows and heads.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bigqa.engine.bits import draw_seed, dropping_signs
from bigqa.tasks.base import STANDS_FOR as STANDS_FOR
from bigqa.tasks.base import standing_for as standing_for

ROW = 32
"""Windows are rounded up to multiples of this: softmax is half as fast on other rows, and products of sizes that come
again find their kernels made."""


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
        places = _places(shape.lengths, heads, query_HTD.device)
        query_LD, key_LD, value_LD = (_laid_out(one, places) for one in (query_HTD, key_HTD, value_HTD))
        query_LD *= scale
        context_LD = torch.empty_like(query_LD)
        kept = query_HTD.new_empty(heads * sum(_row(length) ** 2 for length in shape.lengths))
        for number, length, rows, weights_HRR in _windows(shape, kept, heads):
            query, key, value, context = (rows(one) for one in (query_LD, key_LD, value_LD, context_LD))
            _probabilities(query, key, shape, length, weights_HRR)
            used = weights_HRR
            if dropout:
                signs = dropping_signs(weights_HRR.shape, dropout, (seed, number), like=weights_HRR)
                torch.copysign(weights_HRR, signs.view(weights_HRR.dtype), out=weights_HRR)
                used = functional.relu(weights_HRR)
            torch.bmm(used, value, out=context)
        if dropout:
            context_LD *= 1.0 / (1.0 - dropout)
        ctx.save_for_backward(query_LD, key_LD, value_LD, kept)
        ctx.options = (places, shape, dropout, scale)
        return context_LD.index_select(0, places.own).view(tokens, heads, size)

    @staticmethod
    def backward(ctx: Any, gradient_THD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Rows that are no token's have no gradient, and hand none on."""
        query_LD, key_LD, value_LD, kept = ctx.saved_tensors
        places, shape, dropout, scale = ctx.options
        tokens, heads, size = gradient_THD.shape
        outer_LD = torch.zeros_like(query_LD).index_copy_(0, places.own, gradient_THD.reshape(-1, size))
        if dropout:
            outer_LD *= 1.0 / (1.0 - dropout)
        d_query_LD, d_key_LD, d_value_LD = (torch.empty_like(query_LD) for _ in range(3))
        for _, _, rows, weights_HRR in _windows(shape, kept, heads):
            query, key, value, outer = (rows(one) for one in (query_LD, key_LD, value_LD, outer_LD))
            used = functional.relu(weights_HRR) if dropout else weights_HRR
            torch.bmm(used.transpose(1, 2), outer, out=rows(d_value_LD))
            d_scores = _scores_gradient(torch.bmm(outer, value.transpose(1, 2)), weights_HRR, dropout)
            torch.bmm(d_scores, key, out=rows(d_query_LD))
            torch.bmm(d_scores.transpose(1, 2), query, out=rows(d_key_LD))
        d_query_LD *= scale
        gradients = (one.index_select(0, places.own) for one in (d_query_LD, d_key_LD, d_value_LD))
        return *(one.view(tokens, heads, size).transpose(0, 1) for one in gradients), None, None, None


def _probabilities(query: Tensor, key: Tensor, shape: Shape, length: int, out_HRR: Tensor) -> None:
    """Write softmax(Q K^T), zero for the keys beyond the window."""
    scores_HRR = torch.bmm(query, key.transpose(1, 2))
    if length < scores_HRR.shape[-1]:
        scores_HRR[:, :, length:].fill_(float("-inf"))
    closed = shape.closed(length, query.device)
    if closed is not None:
        scores_HRR[:, :length, :length].masked_fill_(closed, float("-inf"))
    if not out_HRR.is_meta:  # without data, torch takes the shape to be another
        torch.softmax(scores_HRR, dim=-1, out=out_HRR)


def _scores_gradient(d_used_HRR: Tensor, weights_HRR: Tensor, dropout: float) -> Tensor:
    """Return softmax's gradient; what was dropped, by the sign of its probability, has handed nothing on."""
    if dropout:
        d_used_HRR = torch.ops.aten.threshold_backward(d_used_HRR, weights_HRR, 0)
        weights_HRR = weights_HRR.abs()
    gradient: Tensor = torch.ops.aten._softmax_backward_data(d_used_HRR, weights_HRR, -1, weights_HRR.dtype)
    return gradient


@dataclass(frozen=True)
class _Places:
    """Where tokens lie among the rows of all windows and heads."""

    tokens: Tensor
    """[L], of each row, in [0, T * H): those beyond a window have its last token's."""
    own: Tensor
    """[T * H], in [0, L): the row of each."""


def _places(lengths: tuple[int, ...], heads: int, device: torch.device) -> _Places:
    """Return where tokens lie; layers of one micro-batch share it."""
    if device.type == "meta":
        # One tensor for all layers here too: a trace tells layers by what each of them makes.
        return _Places(*(_NOWHERE.expand(count * heads) for count in (sum(map(_row, lengths)), sum(lengths))))
    return _places_of(lengths, heads)


_NOWHERE = torch.empty(1, dtype=torch.long, device="meta")


@functools.lru_cache(maxsize=2)
def _places_of(lengths: tuple[int, ...], heads: int) -> _Places:
    head, tokens, own, begin, place = torch.arange(heads), [], [], 0, 0
    for length in lengths:
        row = torch.arange(_row(length))
        tokens.append((begin + row.clamp(max=length - 1)) * heads + head[:, None])
        own.append(place + head * len(row) + row[:length, None])
        begin, place = begin + length, place + len(row) * heads
    return _Places(*(torch.cat([part.flatten() for part in parts]) for parts in (tokens, own)))


def _laid_out(one_HTD: Tensor, places: _Places) -> Tensor:
    """Return the rows of all windows and heads: [H, T, D] -> [L, D]."""
    return one_HTD.transpose(0, 1).reshape(-1, one_HTD.shape[-1]).index_select(0, places.tokens)


def _row(length: int) -> int:
    return -(-length // ROW) * ROW


def _windows(shape: Shape, kept: Tensor, heads: int) -> Iterator[tuple[int, int, Callable[[Tensor], Tensor], Tensor]]:
    """Yield each window's number, tokens, its part of rows, and probabilities.

    Of tensors without data, the first window stands for all.
    """
    begin = place = 0
    for number, length in enumerate(shape.lengths):
        row = _row(length)
        rows = functools.partial(_part, begin=begin, heads=heads, row=row)
        weights_HRR = kept[place : place + heads * row**2].view(heads, row, row)
        if kept.is_meta:
            with standing_for(len(shape.lengths)):
                yield number, length, rows, weights_HRR
            return
        yield number, length, rows, weights_HRR
        begin, place = begin + heads * row, place + heads * row**2


def _part(rows_LD: Tensor, begin: int, heads: int, row: int) -> Tensor:
    """Return a window's rows: [L, D] -> [H, R, D]."""
    return rows_LD[begin : begin + heads * row].view(heads, row, -1)
