"""What goes from layer to layer, of all micro-batches: on the host, but for the newest few. In, out: tensors by key.

The hidden states at the borders of layers are kept from the forward to the backward pass; their gradients from a layer
to the one below it. Each has a block of host memory of its own, which serves again in the next step.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigqa.engine.stream.link import Link

ROOM = 3
"""On the device besides what is being computed: what was made last, and what is fetched ahead."""
ON_THEIR_WAY = 2
"""Left by their owner, their copies perhaps still running."""


@dataclass
class _Here:
    tensor: Tensor
    event: Any
    """Of its copy, to the host or from it."""
    fetched: bool


class Borders:
    """Sends what it is given to the host, and fetches what is asked for."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._here: dict[Hashable, _Here] = {}
        self._on_host: dict[Hashable, tuple[Tensor, torch.Size, torch.dtype]] = {}
        self._leaving: deque[tuple[Any, Tensor]] = deque()

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Take a tensor."""
        tensor = tensor.detach().contiguous()
        block = self.link.block(key, tensor.nbytes)
        self._on_host[key] = block, tensor.shape, tensor.dtype
        event = self.link.leave(block, tensor.view(-1).view(torch.uint8))
        if key in self._here:  # of before, and perhaps on its way still
            before = self._here.pop(key)
            self.let_go(before.event, before.tensor)
        self._here[key] = _Here(tensor, event, fetched=False)
        while len(self._here) > ROOM:
            oldest = self._here.pop(next(iter(self._here)))
            self.let_go(oldest.event, oldest.tensor)

    def ahead(self, key: Hashable) -> None:
        """Begin to fetch what is asked for next."""
        if key in self._here or key not in self._on_host:
            return
        block, shape, dtype = self._on_host[key]
        tensor = torch.empty(shape, dtype=dtype, device=self.link.device)
        event = self.link.arrive(tensor.view(-1).view(torch.uint8), block)
        self._here[key] = _Here(tensor, event, fetched=True)

    def get(self, key: Hashable) -> Tensor:
        """Return a tensor, which is the caller's from now on; a copy stays on the host."""
        self.ahead(key)
        found = self._here.pop(key)
        if found.fetched:
            self.link.wait(found.event)
        else:
            self.let_go(found.event, found.tensor)
        return found.tensor

    def let_go(self, event: Any, tensor: Tensor) -> None:
        """Hold a tensor until its copy to the host is done, or a few later ones have been let go."""
        self._leaving.append((event, tensor))
        if len(self._leaving) > ON_THEIR_WAY:
            self.link.wait(self._leaving.popleft()[0])

    def clear(self) -> None:
        """End a step, or drop what it left."""
        for here in self._here.values():
            self.link.wait(here.event)
        while self._leaving:
            self.link.wait(self._leaving.popleft()[0])
        self._here.clear()
        self._on_host.clear()
