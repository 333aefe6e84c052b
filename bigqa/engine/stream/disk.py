"""Host memory in a file on a fast disk, of which a few pieces are in memory at a time. In: a folder. Out: tensors.

The file is mapped, and has no name: it is gone with the process, however that ends. Its room is taken from the disk as
tensors are made, so that a full disk is told then, and not by a signal in the middle of a step. What is about to be
used is read ahead; what is left is written out and given back: changed pages that wait in memory count as memory.
"""

import contextlib
import ctypes
import mmap
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bigqa.engine.pinned import whole_pages
from bigqa.files import write_error
from bigqa.units import MIB

BATCH_BYTES = 32 * MIB
"""Read ahead, written out, and left but not yet written: as much of each."""
TAKEN_BYTES = 64 * MIB
"""Of the disk at once."""
ADVISED_BYTES = 128 * 1024
"""Linux reads no more ahead for one call than a disk's own read-ahead. Source: its mm/readahead.c,
`force_page_cache_ra`."""
WRITE, WRITTEN = 2, 1 | 2 | 4
"""Flags of `sync_file_range`: begin to write, and wait until all of it is."""
IN_PLAY_BYTES = 4 * BATCH_BYTES
"""In memory at most while pieces pass: read ahead, in use, left, and on their way to the disk."""

Range = tuple[int, int]
"""Of the file, from the first byte to the one after the last."""


class Disk(Protocol):
    """Makes tensors in a file."""

    size_bytes: int
    """Taken of the disk."""

    def make(self, count: int, dtype: torch.dtype) -> Tensor:
        """Make a flat tensor of zeros. Raises: BigqaError where the disk has no room for it."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the file."""

    def ahead(self, tensors: Iterable[Tensor]) -> None:
        """Begin to read flat tensors."""

    def leave(self, tensors: Iterable[Tensor], *, changed: bool) -> None:
        """Let flat tensors go from memory, written out where they are changed."""


class CountedDisk:
    """Of tensors without data: bytes are counted."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._made: dict[int, Tensor] = {}

    def make(self, count: int, dtype: torch.dtype) -> Tensor:
        self.size_bytes += whole_pages(count * dtype.itemsize)
        one = torch.zeros((), dtype=dtype, device="cpu")
        self._made[one.data_ptr()] = one
        return one.expand(count)

    def holds(self, tensor: Tensor) -> bool:
        return not tensor.is_meta and tensor.data_ptr() in self._made

    def ahead(self, tensors: Iterable[Tensor]) -> None:
        """Nothing is there to be read."""

    def leave(self, tensors: Iterable[Tensor], *, changed: bool) -> None:
        """Nothing is there to be written."""


class MappedDisk:
    """A file without a name, mapped as a whole."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """`most_bytes`: more than all tensors will take; nothing is taken yet. Raises: BigqaError."""
        self.folder = folder
        self.size_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - for as long as this is
            os.ftruncate(self._file.fileno(), whole_pages(most_bytes))
            self._map = mmap.mmap(self._file.fileno(), whole_pages(most_bytes))
        except OSError as error:
            raise write_error(folder, error) from error
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._begin = self._bytes.data_ptr()
        self._taken = 0
        self._lock = threading.Lock()
        self._left: list[Range] = []
        self._on_their_way: list[Range] = []

    def make(self, count: int, dtype: torch.dtype) -> Tensor:
        begin, size = self.size_bytes, count * dtype.itemsize
        self.size_bytes += whole_pages(size)
        self._take_room()
        return self._bytes[begin : begin + size].view(dtype)

    def _take_room(self) -> None:
        """Take room of the disk for all that was made and a little more: each time is a turn of its journal."""
        more = min(max(TAKEN_BYTES, self.size_bytes - self._taken), len(self._bytes) - self._taken)
        if self.size_bytes <= self._taken or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file.fileno(), self._taken, more)
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._taken += more

    def holds(self, tensor: Tensor) -> bool:
        return 0 <= tensor.data_ptr() - self._begin < self.size_bytes

    def ahead(self, tensors: Iterable[Tensor]) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        for begin, end in merged(map(self._range, tensors)):
            for at in range(begin, end, ADVISED_BYTES):
                os.posix_fadvise(self._file.fileno(), at, min(ADVISED_BYTES, end - at), os.POSIX_FADV_WILLNEED)

    def leave(self, tensors: Iterable[Tensor], *, changed: bool) -> None:
        """As `Disk`: what is changed is written out when there is some of it, beside what comes after it."""
        ranges = merged(map(self._range, tensors))
        with self._lock:
            if not changed:
                self._drop(ranges)
                return
            self._left = merged([*self._left, *ranges])
            if sum(end - begin for begin, end in self._left) >= BATCH_BYTES:
                self._write_out()

    def settle(self) -> None:
        """Write out and give back whatever was left."""
        with self._lock:
            self._write_out()
            self._write_out()

    def _write_out(self) -> None:
        """Begin to write what was left, and give back what was begun before."""
        for one in self._left:
            self._sync(one, WRITE)
        for one in self._on_their_way:
            self._sync(one, WRITTEN)
        self._drop(self._on_their_way)
        self._on_their_way, self._left = self._left, []

    def _drop(self, ranges: Iterable[Range]) -> None:
        """Unmap pages, which the file keeps, and let its cache forget those that are written."""
        for begin, end in ranges:
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)

    def _sync(self, one: Range, flags: int) -> None:
        begin, end = one
        sync = _sync_file_range()
        if sync is None:
            self._map.flush(begin, end - begin)
        elif sync(self._file.fileno(), begin, end - begin, flags):
            raise write_error(self.folder, OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))

    def _range(self, tensor: Tensor) -> Range:
        """Return the pages that a tensor has part in."""
        begin = tensor.data_ptr() - self._begin
        return begin // mmap.PAGESIZE * mmap.PAGESIZE, whole_pages(begin + tensor.nbytes)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges in order, those that touch as one."""
    found: list[Range] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif end > begin:
            found.append((begin, end))
    return found


def _sync_file_range():  # type: ignore[no-untyped-def]
    """Return Linux's own call, which writes pages out and no journal; none elsewhere."""
    with contextlib.suppress(AttributeError, OSError):
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        return call
    return None
