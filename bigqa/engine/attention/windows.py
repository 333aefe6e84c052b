"""Attention within each window of a packed batch, on a CPU, dropout kept. In: queries, keys, values. Out: the context.

One window at a time, or several short ones of one size: what passes between products fits the processor's cache, and
calls are as few as that allows. Probabilities are kept for the backward pass in the precision of the weights, what was
dropped by their sign: probabilities have none of their own.

Queries, keys and values are laid out anew once, for all windows: the rows of a window lie together, head by head, and
are rounded up. So products read and write them where they are, with few small operations between the large ones.

T: tokens of all windows. H: heads. D: size of a head. S: a window's tokens. R: its rows, the tokens rounded up.
L: rows of all windows and heads. N: windows that go together. G: their heads, N * H.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
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


TOGETHER = 256**2
"""Probabilities of one head: short windows go together until they are as many."""


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
        for group, rows, weights_GRR in _windows(shape, kept, heads):
            query, key, value, context = (rows(one) for one in (query_LD, key_LD, value_LD, context_LD))
            _probabilities(query, key, group.closed, weights_GRR)
            used = weights_GRR
            if dropout:
                signs = dropping_signs(weights_GRR.shape, dropout, (seed, group.number), like=weights_GRR)
                torch.copysign(weights_GRR, signs.view(weights_GRR.dtype), out=weights_GRR)
                used = functional.relu(weights_GRR)
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
        for _, rows, weights_GRR in _windows(shape, kept, heads):
            query, key, value, outer = (rows(one) for one in (query_LD, key_LD, value_LD, outer_LD))
            used = functional.relu(weights_GRR) if dropout else weights_GRR
            torch.bmm(used.transpose(1, 2), outer, out=rows(d_value_LD))
            d_scores = _scores_gradient(torch.bmm(outer, value.transpose(1, 2)), weights_GRR, dropout)
            torch.bmm(d_scores, key, out=rows(d_query_LD))
            torch.bmm(d_scores.transpose(1, 2), query, out=rows(d_key_LD))
        d_query_LD *= scale
        gradients = (one.index_select(0, places.own) for one in (d_query_LD, d_key_LD, d_value_LD))
        return *(one.view(tokens, heads, size).transpose(0, 1) for one in gradients), None, None, None


def _probabilities(query: Tensor, key: Tensor, closed: Tensor | None, out_GRR: Tensor) -> None:
    """Write softmax(Q K^T), zero for what is closed."""
    scores_GRR = torch.bmm(query, key.transpose(1, 2))
    if closed is not None:
        scores_GRR.view(len(closed), -1, *scores_GRR.shape[1:]).masked_fill_(closed, float("-inf"))
    if not out_GRR.is_meta:  # without data, torch takes the shape to be another
        torch.softmax(scores_GRR, dim=-1, out=out_GRR)


def _scores_gradient(d_used_GRR: Tensor, weights_GRR: Tensor, dropout: float) -> Tensor:
    """Return softmax's gradient; what was dropped, by the sign of its probability, has handed nothing on."""
    if dropout:
        d_used_GRR = torch.ops.aten.threshold_backward(d_used_GRR, weights_GRR, 0)
        weights_GRR = weights_GRR.abs()
    gradient: Tensor = torch.ops.aten._softmax_backward_data(d_used_GRR, weights_GRR, -1, weights_GRR.dtype)
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
    """Windows lie by their size, those of one size in their own order."""
    head, begins = torch.arange(heads), [0, *itertools.accumulate(lengths)]
    tokens: list[Tensor] = []
    own: dict[int, Tensor] = {}
    place = 0
    for number in _by_size(lengths):
        length = lengths[number]
        row = torch.arange(_row(length))
        tokens.append((begins[number] + row.clamp(max=length - 1)) * heads + head[:, None])
        own[number] = place + head * len(row) + row[:length, None]
        place += len(row) * heads
    parts = (tokens, [own[number] for number in range(len(lengths))])
    return _Places(*(torch.cat([one.flatten() for one in part]) for part in parts))


def _by_size(lengths: tuple[int, ...]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda number: _row(lengths[number]))


def _laid_out(one_HTD: Tensor, places: _Places) -> Tensor:
    """Return the rows of all windows and heads: [H, T, D] -> [L, D]."""
    return one_HTD.transpose(0, 1).reshape(-1, one_HTD.shape[-1]).index_select(0, places.tokens)


def _row(length: int) -> int:
    return -(-length // ROW) * ROW


@dataclass(frozen=True)
class _Group:
    """Windows of one size that go together."""

    number: int
    """Of the first of them."""
    count: int
    row: int
    closed: Tensor | None
    """[N, 1, R, R] or [N, 1, 1, R]; none: nothing is closed to any of them."""


@functools.lru_cache(maxsize=4)
def _groups_of(shape: Shape) -> tuple[_Group, ...]:
    """Return the windows in the order in which they lie; layers of one micro-batch share it."""
    found: list[_Group] = []
    for row, numbers in itertools.groupby(_by_size(shape.lengths), key=lambda number: _row(shape.lengths[number])):
        same, most = list(numbers), max(1, TOGETHER // row**2)
        for begin in range(0, len(same), most):
            found.append(_group(shape, same[begin : begin + most], torch.device("cpu")))
    return tuple(found)


def _group(shape: Shape, numbers: Sequence[int], device: torch.device) -> _Group:
    lengths = [shape.lengths[number] for number in numbers]
    row = _row(lengths[0])
    closed = [_closed(shape, length, row, device) for length in lengths]
    if all(one is None for one in closed):
        return _Group(numbers[0], len(numbers), row, None)
    nothing = torch.zeros(1, row, dtype=torch.bool, device=device)
    stacked = torch.stack([nothing if one is None else one for one in closed])
    return _Group(numbers[0], len(numbers), row, stacked[:, None])


def _closed(shape: Shape, length: int, row: int, device: torch.device) -> Tensor | None:
    """Return what the rows of a window may not look at, [R, R] or [1, R]; none: nothing.

    Keys beyond the window, for all; rows beyond it look at all others, so that none looks at nothing.
    """
    beyond = (torch.arange(row, device=device) >= length)[None]
    closed = shape.closed(length, device)
    if closed is None:
        return beyond if length < row else None
    return functional.pad(closed, (0, row - length, 0, row - length)) | beyond


def _windows(shape: Shape, kept: Tensor, heads: int) -> Iterator[tuple[_Group, Callable[[Tensor], Tensor], Tensor]]:
    """Yield windows that go together, their part of rows, and probabilities.

    Of tensors without data, the first window stands for all.
    """
    begin = place = 0
    for group in (_group(shape, [0], kept.device),) if kept.is_meta else _groups_of(shape):
        many, row = group.count * heads, group.row
        rows = functools.partial(_part, begin=begin, heads=many, row=row)
        weights_GRR = kept[place : place + many * row**2].view(many, row, row)
        if kept.is_meta:
            with standing_for(len(shape.lengths)):
                yield group, rows, weights_GRR
            return
        yield group, rows, weights_GRR
        begin, place = begin + many * row, place + many * row**2


def _part(rows_LD: Tensor, begin: int, heads: int, row: int) -> Tensor:
    """Return the rows of windows: [L, D] -> [G, R, D]."""
    return rows_LD[begin : begin + heads * row].view(heads, row, -1)
