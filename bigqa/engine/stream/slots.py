"""Two places for the weights of layers on a device. In: layers and their units. Out: each layer's weights in time.

A layer's parameters lie in one of the two places for good, and so do those of every other layer after it: what they
hold is the layer's own from `use` until the next `use`.
"""

from collections.abc import Sequence

import torch
from torch import nn

from bigqa.engine.stream.shelf import Shelf
from bigqa.engine.stream.staging import Bringing
from bigqa.engine.stream.store import Unit

PLACES = 2


class Slots:
    """Brings weights, the next layer's ahead."""

    def __init__(self, shelf: Shelf, units: Sequence[Unit], dtype: torch.dtype, *, staged: bool) -> None:
        """`staged`: weights come to the device by pinned memory."""
        size, count = max(unit.flat.numel() for unit in units), min(PLACES, len(units))
        self.shelf, self.link, self.units = shelf, shelf.link, units
        self.places = [torch.empty(size, dtype=dtype, device=self.link.device) for _ in range(count)]
        self._holds: list[int | None] = [None] * count
        self._bringing = Bringing(shelf, size, dtype, count, staged=staged)

    @property
    def ahead_bytes(self) -> int:
        """What is in memory of weights on a disk, that of the next layer being read."""
        return self.places[0].nbytes if self.shelf.weights_on_disk else 0

    def parameter(self, layer: int, name: str) -> nn.Parameter:
        """Return a parameter of a layer: its place, seen in its shape."""
        unit = self.units[layer]
        return nn.Parameter(self.places[self._place(layer)][unit.places[name]].view(unit.weights[name].shape))

    def ahead(self, layer: int) -> None:
        """Begin to bring a layer's weights, where they are not there, once what is launched by now is done."""
        place = self._place(layer)
        if not 0 <= layer < len(self.units) or self._holds[place] == layer:
            return
        flat = self.units[layer].flat
        self._bringing.begin(place, self.places[place][: flat.numel()], flat)
        self._holds[place] = layer

    def use(self, layer: int, then: int) -> None:
        """Wait for a layer's weights; `then`: whose are wanted next."""
        self.ahead(layer)
        self._bringing.wait(self._place(layer))
        self.ahead(then)
        after = 2 * then - layer
        if 0 <= after < len(self.units):
            self.shelf.ahead([self.units[after].flat])

    def forget(self) -> None:
        """Know that the host's weights have changed."""
        self._bringing.drop()
        self._holds = [None] * len(self.places)

    def let_go(self) -> None:
        """Give the places back: no layer comes any more."""
        self._bringing.drop()
        self.places, self._holds = [], []
        del self._bringing

    def _place(self, layer: int) -> int:
        return layer % len(self.places)
