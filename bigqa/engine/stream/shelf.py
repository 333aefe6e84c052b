"""Where streamed weights and states are kept on the host: in memory, or in a file. In: sizes. Out: tensors.

What uses them goes along them piece by piece, and need not know where they are.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bigqa.engine.pinned import whole_pages
from bigqa.engine.stream.disk import BATCH_BYTES, CountedDisk, Disk, MappedDisk
from bigqa.engine.stream.link import Link
from bigqa.strategy import Strategy

MOST_BYTES = 24
"""Of a parameter: its weight, master, moments and gradient in fp32, and some more."""
PAGES = 16
"""Of a parameter, however small: each tensor that is made begins on a page of its own."""


class Shelf:
    """All of it in memory."""

    weights_on_disk = states_on_disk = False

    def __init__(self, link: Link) -> None:
        self.link = link
        self.bytes_read = self.bytes_written = 0
        """Of a disk, so far, as pieces passed: not of single rows, and not to be saved."""

    @property
    def disk_bytes(self) -> int:
        """What is taken of a disk."""
        return 0

    def weights(self, count: int, dtype: torch.dtype, *, moves: bool, stays: bool = False) -> Tensor:
        """Make room for weights; `moves`: they are copied to the device as they lie there; `stays`: in memory."""
        return self.link.pinned(count, dtype) if moves else self.link.kept(count, dtype)

    def states(self, count: int, dtype: torch.dtype) -> Tensor:
        """Make room for what the update alone uses."""
        return self.link.kept(count, dtype)

    def handed_back(self, count: int) -> Tensor:
        """Make room for a weight in fp32, as the model has it in the end."""
        return torch.empty(count)

    def along(
        self, pieces: Iterable[slice], *, changed: Sequence[Tensor] = (), read: Sequence[Tensor] = ()
    ) -> Iterator[slice]:
        """Yield pieces of flat tensors in turn, each of which is in memory while it is used.

        A tensor with fewer elements than the first, as the scales of blocks, is gone along by its share.
        """
        return iter(pieces)

    def ahead(self, tensors: Iterable[Tensor]) -> None:
        """Know that these come next."""

    def leave(self, tensors: Iterable[Tensor]) -> None:
        """Know that these, which were only read, are not wanted for a while."""


class ShelfOnDisk(Shelf):
    """Some of it in a file."""

    def __init__(self, link: Link, disk: Disk, *, weights: bool, states: bool) -> None:
        super().__init__(link)
        self.disk, self.weights_on_disk, self.states_on_disk = disk, weights, states

    @property
    def disk_bytes(self) -> int:
        return self.disk.size_bytes

    def weights(self, count: int, dtype: torch.dtype, *, moves: bool, stays: bool = False) -> Tensor:
        on_disk = self.weights_on_disk and not stays
        return self.disk.make(count, dtype) if on_disk else super().weights(count, dtype, moves=moves)

    def states(self, count: int, dtype: torch.dtype) -> Tensor:
        return self.disk.make(count, dtype) if self.states_on_disk else super().states(count, dtype)

    def handed_back(self, count: int) -> Tensor:
        return self.disk.make(count, torch.float32) if self.weights_on_disk else super().handed_back(count)

    def along(
        self, pieces: Iterable[slice], *, changed: Sequence[Tensor] = (), read: Sequence[Tensor] = ()
    ) -> Iterator[slice]:
        pieces, count = list(pieces), next(one.numel() for one in (*changed, *read))
        written, others = ([one for one in tensors if self.disk.holds(one)] for tensors in (changed, read))

        def ahead(piece: slice) -> None:
            self.disk.ahead(_parts([*written, *others], piece, count))

        lead = 1 + BATCH_BYTES * len(pieces) // max(1, sum(one.nbytes for one in (*written, *others)))
        for piece in pieces[:lead]:
            ahead(piece)
        for piece, later in itertools.zip_longest(pieces, pieces[lead:]):
            if later is not None:
                ahead(later)
            yield piece
            self.disk.leave(_parts(written, piece, count), changed=True)
            self.disk.leave(_parts(others, piece, count), changed=False)
        self.bytes_read += sum(one.nbytes for one in (*written, *others))
        self.bytes_written += sum(one.nbytes for one in written)

    def ahead(self, tensors: Iterable[Tensor]) -> None:
        self.disk.ahead(one for one in tensors if self.disk.holds(one))

    def leave(self, tensors: Iterable[Tensor]) -> None:
        self.disk.leave((one for one in tensors if self.disk.holds(one)), changed=False)


def shelf_of(strategy: Strategy, link: Link, model: nn.Module, folder: Path | None) -> Shelf:
    """Return where a strategy keeps what it streams. `folder`: on a disk. Raises: BigqaError."""
    weights, states = strategy.weights_on_disk, strategy.offload_optimizer == "nvme"
    if not weights and not states:
        return Shelf(link)
    if link.device.type == "meta":
        return ShelfOnDisk(link, CountedDisk(), weights=weights, states=states)
    assert folder is not None
    most = sum(MOST_BYTES * one.numel() + PAGES * whole_pages(1) for one in model.parameters())
    return ShelfOnDisk(link, MappedDisk(folder, most), weights=weights, states=states)


def _parts(tensors: Iterable[Tensor], piece: slice, count: int) -> list[Tensor]:
    """Return each tensor's part in a piece of `count` elements."""
    stop = count if piece.stop is None else min(piece.stop, count)
    return [one[piece.start * one.numel() // count : -(-stop * one.numel() // count)] for one in tensors]
