"""Pinned host memory for what comes and goes in the same order, again and again. In: sizes, in order. Out: `Lent`.

torch rounds pinned blocks up to powers of two, and makes a new one where a copy from the old one is still on its way.
Here memory is taken page by page, and in each pass the k-th block serves the k-th that is asked for. All copies run on
one stream: what is written into a block comes after what was read out of it, and nobody waits.
"""

import mmap
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bigqa.engine.cudart import forget_error
from bigqa.engine.recovery import OutOfMemory
from bigqa.language import tr
from bigqa.units import format_bytes

NO_MEMORY = 2
"""`cudaErrorMemoryAllocation`."""
REFUSALS = {1: "invalid value", 304: "operating system", 800: "not permitted", 801: "not supported"}
"""Errors of CUDA's where a driver or a container does not pin what a program has, and nothing is wrong beside that."""
_most_bytes = _now_bytes = 0
_refused: str | None = None


def most_pinned_bytes() -> int:
    """Return the most that this process has pinned here, beside what torch pins itself."""
    return _most_bytes


def refused() -> str | None:
    """Return a line about memory that could not be pinned in this process; none: all of it was."""
    return _refused


def whole_pages(size_bytes: int) -> int:
    """Return what a block of a size takes."""
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


class Pinning(Protocol):
    """Pins memory that is there, and lets go of it."""

    def pin(self, address: int, size_bytes: int) -> bool:
        """Pin a range; return whether it is pinned: else copies are as right, and the host waits for them."""
        ...

    def unpin(self, address: int) -> None:
        """Let go of it, once nothing is copied to or from it any more."""


class CudaPinning:
    """By CUDA, for the copies of some streams, which are of one device.

    Any thread may ask. Of one that has not chosen a device the first is the current one, and CUDA would make a context
    on it, of hundreds of MiB, in every process of a run.
    """

    def __init__(self, *streams: torch.cuda.Stream) -> None:
        self.streams = streams

    def pin(self, address: int, size_bytes: int) -> bool:
        """Pin a range. Raises: OutOfMemory, of the host, where there is no memory left that may be pinned."""
        with torch.cuda.device(self.streams[0].device):
            failed = int(torch.cuda.cudart().cudaHostRegister(address, size_bytes, 0))
        if failed == NO_MEMORY:
            forget_error()
            more = format_bytes(size_bytes)
            raise OutOfMemory("host", tr("no {size_bytes} more of the host's memory can be pinned", size_bytes=more))
        if failed in REFUSALS:
            forget_error()
            _note_refusal(failed)
            return False
        torch.cuda.check_error(failed)
        return True

    def unpin(self, address: int) -> None:
        """Wait for the streams, and let go."""
        for stream in self.streams:
            stream.synchronize()
        with torch.cuda.device(self.streams[0].device):
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(address))


@dataclass(frozen=True, eq=False)
class Lent:
    """A block while somebody has it."""

    tensor: Tensor
    """Bytes, as many as were asked for."""
    block: "_Block"


class _Block:
    """Some pages. They are let go of when neither a pool nor a borrower has them."""

    def __init__(self, size_bytes: int, pinning: Pinning) -> None:
        self.size_bytes = whole_pages(size_bytes)
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        pages = mmap.mmap(-1, self.size_bytes, **private)
        if hasattr(mmap, "MADV_DONTFORK"):
            # After a fork, who writes first gets another page, and the GPU would go on with the one before.
            pages.madvise(mmap.MADV_DONTFORK)
        self.tensor = torch.frombuffer(pages, dtype=torch.uint8)
        if pinning.pin(self.tensor.data_ptr(), self.size_bytes):
            _count(self.size_bytes)
            # The tensor goes along: its pages stay until they are not pinned any more.
            weakref.finalize(self, _let_go, pinning, self.tensor).atexit = False
        self.borrower: weakref.ref[Lent] | None = None

    def is_lent(self) -> bool:
        """Whether somebody has it."""
        return self.borrower is not None and self.borrower() is not None


class PinnedPool:
    """Blocks in the order in which they are asked for."""

    def __init__(self, pinning: Pinning) -> None:
        self.pinning = pinning
        self._blocks: list[_Block | None] = []
        self._next = 0

    def begin(self) -> None:
        """Begin a pass: what was lent in the one before, and is not held any more, serves again."""
        self._next = 0

    def lend(self, size_bytes: int) -> Lent:
        """Lend the next block, a larger one than before where that is asked for."""
        number, self._next = self._next, self._next + 1
        if number == len(self._blocks):
            self._blocks.append(None)
        block = self._blocks[number]
        if block is None or block.size_bytes < size_bytes or block.is_lent():
            self._blocks[number] = block = None  # gone before there is another
            self._blocks[number] = block = _Block(size_bytes, self.pinning)
        lent = Lent(block.tensor[:size_bytes], block)
        block.borrower = weakref.ref(lent)
        return lent


def _let_go(pinning: Pinning, tensor: Tensor) -> None:
    pinning.unpin(tensor.data_ptr())
    _count(-tensor.numel())


def _note_refusal(code: int) -> None:
    global _refused
    _refused = (
        f"host memory cannot be pinned here (CUDA error {code}, {REFUSALS[code]}): copies to and from the GPU are made "
        "all the same, and waited for, which takes longer"
    )


def _count(more_bytes: int) -> None:
    global _now_bytes, _most_bytes
    _now_bytes += more_bytes
    _most_bytes = max(_most_bytes, _now_bytes)


def pinned_by_all() -> int:
    """Return the most that is pinned: here, and by torch for batches and figures."""
    statistics: Any = getattr(torch.cuda, "host_memory_stats", dict)()
    return most_pinned_bytes() + int(statistics.get("allocated_bytes.peak", 0))
