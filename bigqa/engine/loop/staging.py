"""A step's batches on their way to a GPU: laid into pinned memory, copied beside the computation. In, out: batches.

All of a step's lie in one block, in whole pages, and there are two: while the copies out of one may be on their way,
the next step's batches are laid into the other. So what is pinned follows from the batches alone. torch's own pinning
takes a block for each tensor, of a power of two, and one more where a copy happens to be on its way as it is asked.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from bigqa.engine.pinned import CudaPinning, PinnedPool, whole_pages
from bigqa.tasks.base import Batch

BLOCKS = 2
ALIGNED = 64
"""Bytes: where a tensor begins within a block."""


def laid_bytes(batches: Iterable[Batch]) -> int:
    """Return what a step's batches take when they are laid end to end."""
    return sum(_aligned(one.nbytes) for batch in batches for one in batch.values())


def staged_bytes(batches: Iterable[Batch]) -> int:
    """Return what is pinned for steps of such batches: of one step's that are computed with, and of the next one's."""
    return BLOCKS * whole_pages(laid_bytes(batches))


class Staging:
    """Of one device. `lay` is called by one thread, `send` by another; a step is laid before it is sent."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pools = [PinnedPool(CudaPinning(torch.cuda.current_stream(device))) for _ in range(BLOCKS)]
        self._sent: list[Any] = [None] * BLOCKS
        """Behind the copies out of each block; none: there were none yet."""

    def lay(self, step: int, batches: Sequence[Batch]) -> list[Batch]:
        """Return a step's batches in pinned memory, once nothing is copied out of it any more. Raises: OutOfMemory."""
        place = step % BLOCKS
        if self._sent[place] is not None:
            self._sent[place].synchronize()
        self._pools[place].begin()
        block = self._pools[place].lend(laid_bytes(batches)).tensor
        laid, begin = [], 0
        for batch in batches:
            found = {}
            for name, one in batch.items():
                found[name] = block[begin : begin + one.nbytes].view(one.dtype).view(one.shape).copy_(one)
                begin += _aligned(one.nbytes)
            laid.append(found)
        return laid

    def send(self, step: int, batches: Sequence[Batch]) -> list[Batch]:
        """Begin to copy a step's batches to the device; return them there."""
        sent = [{name: one.to(self.device, non_blocking=True) for name, one in batch.items()} for batch in batches]
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        self._sent[step % BLOCKS] = event
        return sent


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNED) * ALIGNED
