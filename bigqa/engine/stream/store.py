"""Weights on the host, with what the optimizer keeps of them. In: named weights. Out: `Unit`s, stepped piece by piece.

A unit is what comes to the device at once: a layer, what is around the layers, or an embedding, which never comes. Its
weights lie end to end in the device's precision. Of bf16 the host keeps the 16 bits that fp32 has more, so that both
together are the fp32 master, exactly; of fp16, whose bits are others, the master itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bigqa.engine.optim.pieces import pieces_of
from bigqa.engine.stream.shelf import Shelf
from bigqa.engine.stream.tables import RowGradient

ALIGNED = 256
"""Elements: where a weight begins within its unit, as torch's own blocks would have it."""
HALF = 0x8000


class Gradient(Protocol):
    """A flat gradient."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What it consists of, flat, where that is as long as it is."""
        ...

    def piece(self, piece: slice) -> Tensor:
        """Return a piece in fp32."""
        ...

    def norm(self) -> Tensor:
        """Return the norm."""
        ...


@dataclass(frozen=True)
class DenseGradient:
    """As it came from the device."""

    flat: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """What it consists of."""
        return [self.flat]

    def piece(self, piece: slice) -> Tensor:
        """Return a copy of a piece, in fp32."""
        return self.flat[piece].to(torch.float32, copy=True)

    def norm(self) -> Tensor:
        """Return the norm; in fp32 by the plain update's own operation, else piece by piece, for a copy is made."""
        if self.flat.dtype == torch.float32:
            return torch.linalg.vector_norm(self.flat, 2.0)
        return torch.stack(
            [torch.linalg.vector_norm(self.flat[piece].float(), 2.0) for piece in pieces_of(self.flat)]
        ).norm()


@dataclass
class Weight:
    """One parameter on the host."""

    name: str
    shape: torch.Size
    decays: bool
    low: Tensor
    """Flat, in the device's precision."""
    gradient: Tensor | RowGradient | None = None
    """Flat, as it comes from the device."""
    waiting: Tensor | None = None
    """Where it waits for the update; none: where it came."""
    is_touched: bool = False
    """Whether this step has a gradient of it."""
    rest: Tensor | None = None
    """Flat: what fp32 has more, or the fp32 master itself."""
    states: dict[str, Any] = field(default_factory=dict)

    def gradient_of_step(self) -> RowGradient | DenseGradient:
        """Return the gradient of this step, as it comes."""
        assert self.gradient is not None
        return self.gradient if isinstance(self.gradient, RowGradient) else DenseGradient(self.gradient)

    def gradient_kept(self) -> RowGradient | DenseGradient:
        """Return the gradient of this step, as it waits."""
        return self.gradient_of_step() if self.waiting is None else DenseGradient(self.waiting)

    @property
    def parts(self) -> list[Tensor]:
        """What the master is put together of."""
        return [self.low] if self.rest is None else [self.low, self.rest]

    def exact(self) -> Tensor:
        """Return the fp32 master."""
        return self.piece(slice(0, self.low.numel())).view(self.shape)

    def piece(self, piece: slice) -> Tensor:
        """Return a piece of the flat fp32 master; of fp32 weights, and of fp16's masters, the piece itself."""
        if self.rest is None:
            return self.low[piece].float()
        return self.rest[piece] if self.rest.dtype == torch.float32 else joined(self.low[piece], self.rest[piece])

    def put(self, piece: slice, master: Tensor) -> None:
        """Take a piece of the master."""
        if self.rest is not None and self.rest.dtype == torch.int16:
            split(master, self.low[piece], self.rest[piece])
            return
        if self.rest is not None and master.data_ptr() != self.rest[piece].data_ptr():
            self.rest[piece].copy_(master)
        if master.data_ptr() != self.low[piece].data_ptr():
            self.low[piece].copy_(master)


def joined(low: Tensor, rest: Tensor) -> Tensor:
    """Return fp32 masters of bf16 weights and what they are off by, in the last 16 bits."""
    bits = low.view(torch.int16).to(torch.int32).mul_(2**16)
    return bits.add_(rest.to(torch.int32)).view(torch.float32)  # of one type: mixed, it is added one by one


def split(master: Tensor, low: Tensor, rest: Tensor) -> None:
    """Round fp32 masters to the nearest bf16, and write down by how much.

    What lies just between two goes away from zero, where torch's own rounding goes to the even one: one of 65,536. The
    difference then always has a place in 16 bits.
    """
    bits = master.contiguous().view(torch.int32)
    rest.copy_(bits)  # the last 16 bits, which as a number are the difference
    low.view(torch.int16).copy_(bits.add(HALF).bitwise_right_shift_(16))


@dataclass
class Unit:
    """Weights that come to the device together."""

    weights: dict[str, Weight]
    flat: Tensor
    """All of them end to end."""
    places: dict[str, slice]
    rest: Tensor | None = None
    """What fp32 has more, likewise."""
    gradient: Tensor | None = None
    """Of all of them, likewise; none of an embedding."""
    waiting: Tensor | None = None
    """Where gradients wait for the update, likewise; none: where they came."""


def make_unit(
    shelf: Shelf, values: Mapping[str, Tensor], undecayed: set[str], dtype: torch.dtype, *, moves: bool, keeps: bool,
    stays: bool = False, made: Mapping[str, Tensor] | None = None,
) -> Unit:  # fmt: skip
    """Put weights on the host. `moves`: they and their gradients are copied; `keeps`: with fp32 masters.

    `stays`: the weights are in memory, wherever others are; `made`: fp32 values of those that are without data.
    """
    places, end = {}, 0
    for name, value in values.items():
        places[name] = slice(end, end + value.numel())
        end += -(-value.numel() // ALIGNED) * ALIGNED
    flat = shelf.weights(end, dtype, moves=moves, stays=stays)
    rest = None
    if keeps and dtype != torch.float32:
        rest = shelf.states(end, torch.int16 if dtype == torch.bfloat16 else torch.float32)
    weights = {}
    for name, value in values.items():
        place = places[name]
        weights[name] = weight = Weight(name, value.shape, name not in undecayed, flat[place])
        weight.rest = None if rest is None else rest[place]
        if made is not None and value.is_meta:
            take(weight, made[name], shelf)
        elif not value.is_meta:
            take(weight, value, shelf)
    return Unit(weights, flat, places, rest)


def take(weight: Weight, value: Tensor, shelf: Shelf) -> None:
    """Put an fp32 value in place."""
    flat = value.detach().reshape(-1)
    for piece in shelf.along(pieces_of(flat), changed=weight.parts):
        weight.put(piece, flat[piece].float())
