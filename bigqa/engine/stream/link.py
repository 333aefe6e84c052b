"""What moves tensors between the host and a device, and makes host memory that can be moved. In: a device. Out: `Link`.

On a GPU weights come on one stream, and what the step keeps goes and comes on another, both beside the computation;
host memory is pinned page by page. On a CPU everything is a copy. Without data, as in a trace, bytes are counted.
"""

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

from bigqa.engine.pinned import CudaPinning, PinnedPool, whole_pages


class Link(Protocol):
    """Of one device. Events are whatever `wait` understands."""

    device: torch.device
    bytes_in: int
    """Moved to the device so far."""
    bytes_out: int
    kept_bytes: int
    """Host memory made by `kept` and `pinned`."""
    pinned_bytes: int
    """The part of it that is pinned, with `block`'s."""

    def kept(self, count: int, dtype: torch.dtype) -> Tensor:
        """Make host memory that nothing is copied from or to beside the computation: zeros."""

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        """Make host memory that is."""

    def block(self, key: Hashable, size_bytes: int) -> Tensor:
        """Return the block of a key, uint8, of this size: what was in it is lost where it had to grow."""

    def arrive(self, to: Tensor, source: Tensor, *, weights: bool = False, after: Any = None) -> Any:
        """Begin to copy to the device, once all that is launched so far is done there; return an event.

        `after`: of `now`; what was launched by then is all that is waited for.
        """

    def fill(self, to: Tensor, source: Tensor) -> None:
        """Copy within host memory, at once."""

    def leave(self, to: Tensor, source: Tensor) -> Any:
        """Begin to copy to the host; return an event."""

    def now(self) -> Any:
        """Return an event of all that is launched so far."""

    def wait(self, event: Any) -> None:
        """Let what is launched from now on wait for a copy."""

    def settle(self, event: Any) -> None:
        """Wait on the host for a copy."""

    def land(self) -> None:
        """Wait on the host until everything has arrived and left."""

    def mark(self) -> Callable[[], None]:
        """Return what waits on the host until everything has left that was told to by now."""


def link_to(device: torch.device) -> Link:
    """Return what moves tensors to a device and back."""
    if device.type == "cuda":
        return _OnStreams(device)
    return _Counted(device) if device.type == "meta" else _InPlace(device)


class _Counting:
    """What all have in common."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes_in = self.bytes_out = self.kept_bytes = self.pinned_bytes = 0

    def kept(self, count: int, dtype: torch.dtype) -> Tensor:
        self.kept_bytes += count * dtype.itemsize
        return torch.zeros(count, dtype=dtype)

    def fill(self, to: Tensor, source: Tensor) -> None:
        to.copy_(source)

    def now(self) -> None:
        """Nothing is on its way."""

    def wait(self, event: Any) -> None:
        """Nothing is on its way."""

    def settle(self, event: Any) -> None:
        """Nothing is on its way."""

    def land(self) -> None:
        """Nothing is on its way."""

    def mark(self) -> Callable[[], None]:
        return self.land


class _InPlace(_Counting):
    """Host and device are one memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._blocks: dict[Hashable, Tensor] = {}

    pinned = _Counting.kept

    def block(self, key: Hashable, size_bytes: int) -> Tensor:
        block = self._blocks.get(key)
        if block is None or block.numel() < size_bytes:
            self.kept_bytes += size_bytes - (0 if block is None else block.numel())
            block = self._blocks[key] = torch.empty(size_bytes, dtype=torch.uint8)
        return block[:size_bytes]

    def arrive(self, to: Tensor, source: Tensor, *, weights: bool = False, after: Any = None) -> None:
        self.bytes_in += source.nbytes
        to.copy_(source)

    def leave(self, to: Tensor, source: Tensor) -> None:
        self.bytes_out += source.nbytes
        to.copy_(source)


class _Counted(_Counting):
    """Of tensors without data: host tensors are of one element, seen as many."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._blocks: dict[Hashable, int] = {}

    def kept(self, count: int, dtype: torch.dtype) -> Tensor:
        self.kept_bytes += count * dtype.itemsize
        return torch.zeros((), dtype=dtype, device="cpu").expand(count)

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        self.pinned_bytes += whole_pages(count * dtype.itemsize)
        return self.kept(count, dtype)

    def block(self, key: Hashable, size_bytes: int) -> Tensor:
        more = max(0, whole_pages(size_bytes) - self._blocks.get(key, 0))
        self._blocks[key] = self._blocks.get(key, 0) + more
        self.pinned_bytes += more
        self.kept_bytes += more
        return torch.zeros((), dtype=torch.uint8, device="cpu").expand(size_bytes)

    def fill(self, to: Tensor, source: Tensor) -> None:
        """There is nothing to copy."""

    def arrive(self, to: Tensor, source: Tensor, *, weights: bool = False, after: Any = None) -> None:
        self.bytes_in += to.nbytes

    def leave(self, to: Tensor, source: Tensor) -> None:
        self.bytes_out += source.nbytes


class _OnStreams(_Counting):
    """Between a GPU and pinned memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._weights, self._others = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._pinning = CudaPinning(self._weights, self._others)
        self._pools: dict[Hashable, PinnedPool] = {}
        self._lent: dict[Hashable, Any] = {}

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        size = count * dtype.itemsize
        self.kept_bytes += size
        self.pinned_bytes += whole_pages(size)
        found = self._taken(("kept", self.kept_bytes, self.pinned_bytes), size)
        return found.view(dtype)

    def block(self, key: Hashable, size_bytes: int) -> Tensor:
        before = self._lent[key].block.size_bytes if key in self._lent else 0
        found = self._taken(key, size_bytes)
        more = self._lent[key].block.size_bytes - before
        self.kept_bytes += more
        self.pinned_bytes += more
        return found

    def _taken(self, key: Hashable, size_bytes: int) -> Tensor:
        pool = self._pools.setdefault(key, PinnedPool(self._pinning))
        self._lent.pop(key, None)  # a block that is lent is not lent again
        pool.begin()
        self._lent[key] = pool.lend(size_bytes)
        return self._lent[key].tensor  # type: ignore[no-any-return]

    def arrive(self, to: Tensor, source: Tensor, *, weights: bool = False, after: Any = None) -> Any:
        self.bytes_in += source.nbytes
        return self._copy(self._weights if weights else self._others, to, source, after)

    def leave(self, to: Tensor, source: Tensor) -> Any:
        self.bytes_out += source.nbytes
        return self._copy(self._others, to, source)

    def now(self) -> Any:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _copy(self, stream: Any, to: Tensor, source: Tensor, after: Any = None) -> Any:
        stream.wait_event(self.now() if after is None else after)
        with torch.cuda.stream(stream):
            to.copy_(source, non_blocking=True)
            event = torch.cuda.Event(blocking=True)
            event.record(stream)
        return event

    def wait(self, event: Any) -> None:
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def settle(self, event: Any) -> None:
        if event is not None:
            event.synchronize()

    def land(self) -> None:
        self._weights.synchronize()
        self._others.synchronize()

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event(blocking=True)  # who waits sleeps: the cores are for the update
        event.record(self._others)
        return event.synchronize
