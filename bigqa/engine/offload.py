"""Activation offload: what the forward pass keeps goes to the host, and comes back before the backward pass wants it.

In: a model. Out: a context to run its forward pass in. Copies run on a stream of their own, beside the computation;
only the newest few tensors stay on the device, so that the backward pass begins at once. A storage that many operations
keep goes once. Weights, and what is too small to be worth a copy, stay.
"""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from bigqa.engine.pinned import CudaPinning, Lent, PinnedPool

MIN_BYTES = 2**18
"""Smaller storages cost more in launches than they free."""
ON_THEIR_WAY = 4
"""Storages that are on the device beyond what computes: leaving in the forward pass, coming back in the backward."""
Packed = tuple["_Kept", torch.dtype, torch.Size, tuple[int, ...], int]


class _Kept:
    """One storage that the backward pass wants."""

    def __init__(self, storage: torch.UntypedStorage, index: int) -> None:
        self.reference = StorageWeakRef(storage)  # holds the address, so that no later storage is taken for this one
        self.index = index
        self.num_bytes = storage.nbytes()
        self.device = storage.device
        self.host: Any = None
        self.storage: torch.UntypedStorage | None = storage
        """On the device; none while it is on the host alone."""
        self.copied: Any = None
        self.wanted = 0
        """Operations that have not asked for it yet."""


class ActivationOffload:
    """Sends what one forward pass keeps to the host, in order, and fetches it in the opposite order."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.host_bytes = 0
        """Sent in the last forward pass."""
        self._copies: Any = None
        self._kept: list[_Kept] = []
        self._by_address: dict[int, _Kept] = {}
        self._leaving: deque[_Kept] = deque()

    @property
    def sent(self) -> tuple[int, ...]:
        """Bytes of each storage that was sent in the last forward pass."""
        return tuple(kept.num_bytes for kept in self._kept)

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Hold around a forward pass, and not around its backward pass."""
        self._kept, self._by_address, self.host_bytes = [], {}, 0
        self._leaving.clear()
        if self._copies is not None:
            self._copies.begin()
        self._stay = {p.untyped_storage()._cdata for p in (*self.model.parameters(), *self.model.buffers())}
        self._sharded = [p for p in self.model.parameters() if hasattr(p, "ds_id")]
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield
        self._by_address.clear()

    def settle(self) -> None:
        """Let go of what was fetched ahead in a backward pass and never asked for: a part of it may have no gradient.

        Its memory is the computing stream's again, which must not write to it while a copy into it is on its way.
        """
        for kept in self._kept:
            _wait(kept)
            kept.storage = None
        self._leaving.clear()

    def _pack(self, tensor: Tensor) -> Tensor | Packed:
        storage = tensor.untyped_storage()
        if storage.nbytes() < MIN_BYTES or storage._cdata in self._stay or self._is_gathered(storage):
            return tensor
        kept = self._by_address.get(storage._cdata)
        if kept is None:
            kept = self._send(storage)
        kept.wanted += 1
        return kept, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset())

    def _is_gathered(self, storage: torch.UntypedStorage) -> bool:
        """Whether it is a weight of ZeRO-3's, whole for a while: the backward pass gathers it anew."""
        return any(p.numel() and p.untyped_storage()._cdata == storage._cdata for p in self._sharded)

    def _send(self, storage: torch.UntypedStorage) -> _Kept:
        kept = _Kept(storage, len(self._kept))
        self._kept.append(kept)
        self._by_address[storage._cdata] = kept
        self.host_bytes += kept.num_bytes
        if storage.device.type != "meta":
            kept.host, kept.copied = self._copies_of(storage.device).out(storage)
        self._leaving.append(kept)
        if len(self._leaving) > ON_THEIR_WAY:
            gone = self._leaving.popleft()
            _wait(gone)
            gone.storage = None
        return kept

    def _unpack(self, packed: Tensor | Packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        kept, dtype, shape, stride, offset = packed
        storage = self._fetch(kept)
        _wait(kept)
        tensor = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, shape, stride)
        kept.wanted -= 1
        if kept.wanted <= 0:
            kept.storage = None
        for before in self._kept[max(0, kept.index - ON_THEIR_WAY + 1) : kept.index]:
            if before.wanted > 0:
                self._fetch(before)
        return tensor

    def _fetch(self, kept: _Kept) -> torch.UntypedStorage:
        if kept.storage is None:
            if kept.host is None:
                kept.storage = torch.empty(kept.num_bytes, dtype=torch.uint8, device="meta").untyped_storage()
            else:
                kept.storage, kept.copied = self._copies.back(kept.host)
        return kept.storage

    def _copies_of(self, device: torch.device) -> Any:
        if self._copies is None:
            self._copies = _OnAStream(device) if device.type == "cuda" else _InPlace(device)
        return self._copies


def _wait(kept: _Kept) -> None:
    """Let what computes wait for a copy: its memory may then be used again, or read."""
    if kept.copied is not None:
        torch.cuda.current_stream(kept.device).wait_event(kept.copied)
        kept.copied = None


class _InPlace:
    """Copies on a CPU, where offloading saves nothing and shows that it changes nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def begin(self) -> None:
        """Begin a forward pass."""

    def out(self, storage: torch.UntypedStorage) -> tuple[Tensor, None]:
        """Return a copy."""
        return _as_bytes(storage).clone(), None

    def back(self, host: Tensor) -> tuple[torch.UntypedStorage, None]:
        """Return a copy of the copy."""
        return host.clone().untyped_storage(), None


class _OnAStream:
    """Copies between a GPU and pinned host memory, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._pool = PinnedPool(CudaPinning(self.stream))

    def begin(self) -> None:
        """Begin a forward pass: it keeps what the one before did, in the same order."""
        self._pool.begin()

    def out(self, storage: torch.UntypedStorage) -> tuple[Lent, torch.cuda.Event]:
        """Begin a copy to the host; return it, and what tells that it is there."""
        host = self._pool.lend(storage.nbytes())
        return host, self._begin(host.tensor, _as_bytes(storage))

    def back(self, host: Lent) -> tuple[torch.UntypedStorage, torch.cuda.Event]:
        """Begin a copy to the device; return it, and what tells that it is there."""
        # Made on the computing stream, which is the one that will give it back.
        device = torch.empty(host.tensor.numel(), dtype=torch.uint8, device=self.device)
        return device.untyped_storage(), self._begin(device, host.tensor)

    def _begin(self, to: Tensor, source: Tensor) -> torch.cuda.Event:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self.stream)
        return event


def _as_bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # type: ignore[call-overload,no-any-return]
