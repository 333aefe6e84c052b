"""Weights of layers on their way to a device. In: what holds them. Out: copies, which are waited for.

From memory they go as they lie there. From a file they come by two pinned places on the host, which a thread fills: a
page that is not in memory would have the one wait that launches the computation.
"""

from typing import Any

import torch
from torch import Tensor

from bigqa.engine.optim.pieces import pieces_of
from bigqa.engine.stream.beside import Beside
from bigqa.engine.stream.link import Link
from bigqa.engine.stream.shelf import Shelf


class Bringing:
    """Brings flat weights to places of the device."""

    def __init__(self, shelf: Shelf, size: int, dtype: torch.dtype, places: int, *, staged: bool) -> None:
        """`staged`: the device copies from pinned memory alone. `size`: elements of the largest."""
        self.link: Link = shelf.link
        self.shelf = shelf
        self._events: list[Any] = [None] * places
        self._staged = [self.link.pinned(size, dtype) for _ in range(places)] if staged else None
        self._beside = Beside(self.link.device, name="weights")

    def begin(self, number: int, to: Tensor, source: Tensor) -> None:
        """Begin to bring weights to the place of a number, once all that is launched so far is done."""
        if self._staged is None:
            self._events[number] = self._from_here(to, source)
            return
        staged, launched, before = self._staged[number][: source.numel()], self.link.now(), self._events[number]
        self._beside.begin(lambda: self._by_way_of(number, to, source, (staged, launched, before)))

    def wait(self, number: int) -> None:
        """Let what is launched from now on wait for the weights of a place."""
        self._beside.done()
        self.link.wait(self._events[number])

    def drop(self) -> None:
        """Wait for what is on its way, and forget it: else a pinned place were filled that is still copied from."""
        self._beside.drop()
        for event in self._events:
            self.link.settle(event)
        self._events = [None] * len(self._events)

    def _from_here(self, to: Tensor, source: Tensor) -> Any:
        event = None
        for piece in self.shelf.along(pieces_of(source), read=[source]):
            event = self.link.arrive(to[piece], source[piece], weights=True)
        return event

    def _by_way_of(self, number: int, to: Tensor, source: Tensor, at: tuple[Tensor, Any, Any]) -> None:
        staged, launched, before = at
        self.link.settle(before)  # its copy of before is done, and there is room
        for piece in self.shelf.along(pieces_of(source), read=[source]):
            self.link.fill(staged[piece], source[piece])
        self._events[number] = self.link.arrive(to, staged, weights=True, after=launched)
