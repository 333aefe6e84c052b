"""Two places for the weights of layers on a device. In: layers and their units. Out: each layer's weights in time.

A layer's parameters lie in one of the two places for good, and so do those of every other layer after it: what they
hold is the layer's own from `use` until the next `use`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.stream.link import Link
from bigqa.engine.stream.store import Unit

PLACES = 2


class Slots:
    """Brings weights, the next layer's ahead."""

    def __init__(self, link: Link, units: Sequence[Unit], dtype: torch.dtype) -> None:
        size = max(unit.flat.numel() for unit in units)
        self.link, self.units = link, units
        self.places = [torch.empty(size, dtype=dtype, device=link.device) for _ in range(min(PLACES, len(units)))]
        self._holds: list[int | None] = [None] * len(self.places)
        self._events: list[Any] = [None] * len(self.places)

    def parameter(self, layer: int, name: str) -> nn.Parameter:
        """Return a parameter of a layer: its place, seen in its shape."""
        unit = self.units[layer]
        return nn.Parameter(self.places[self._place(layer)][unit.places[name]].view(unit.weights[name].shape))

    def ahead(self, layer: int) -> None:
        """Begin to bring a layer's weights, where they are not there, once what is launched by now is done."""
        place = self._place(layer)
        if not 0 <= layer < len(self.units) or self._holds[place] == layer:
            return
        flat: Tensor = self.units[layer].flat
        self._events[place] = self.link.arrive(self.places[place][: flat.numel()], flat, weights=True)
        self._holds[place] = layer

    def use(self, layer: int, then: int) -> None:
        """Wait for a layer's weights; `then`: whose are wanted next."""
        self.ahead(layer)
        self.link.wait(self._events[self._place(layer)])
        self.ahead(then)

    def forget(self) -> None:
        """Know that the host's weights have changed."""
        self._holds = [None] * len(self.places)

    def let_go(self) -> None:
        """Give the places back: no layer comes any more."""
        self.places, self._holds, self._events = [], [], []

    def _place(self, layer: int) -> int:
        return layer % len(self.places)
