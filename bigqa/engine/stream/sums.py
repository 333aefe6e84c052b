"""Gradients of several processes, added up on the host. In: a group of processes, flat tensors. Out: sums, in place.

Each process has taken its own share of a step's windows through the layers. A layer's gradients are added up as soon as
they are whole, in the precision that they have, as plain training does; an embedding's by the rows that anyone looked
up. One process has nothing to add.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed


class Sums:
    """Of one group, which nothing else uses: its work may be asked for by a thread beside the one that trains."""

    def __init__(self, group: Any = None) -> None:
        self.group = group

    def add(self, values: Tensor) -> None:
        """Add a tensor up over the processes."""
        if self.group is not None:
            distributed.all_reduce(values, group=self.group)

    def rows(self, ids: Tensor, count: int) -> Tensor:
        """Return which of `count` rows any process looked up, in order. `ids`: this one's."""
        if self.group is None:
            return ids.unique()
        seen = torch.zeros(count, dtype=torch.uint8)
        seen[ids] = 1
        distributed.all_reduce(seen, distributed.ReduceOp.MAX, group=self.group)
        return seen.nonzero().view(-1)

    def from_first(self, tensors: Iterable[Tensor | None]) -> None:
        """Take the first process's values: what is new in a model was drawn by each."""
        for one in tensors:
            if self.group is not None and one is not None:
                distributed.broadcast(one.view(torch.uint8), 0, group=self.group)
