"""Running out of memory: told from other errors, and seen before the kernel kills. In: an error, or the host's memory.

Out: `OutOfMemory`, which says after which step the run is whole. What happens then is `bigqa.plan.ladder`'s.
"""

import errno
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

import psutil
import torch

from bigqa.errors import LACKING
from bigqa.language import tr
from bigqa.machine.hardware import host_memory
from bigqa.machine.heap import hand_back

HALF_SAID = ("could not create a primitive", "could not create a memory")
"""What oneDNN says where it finds no memory, and for other reasons too: a word on memory where the host's is short."""
MARKS = (
    *LACKING,
    "out of memory",
    "failed to allocate",
    "alloc_failed",
    "allocation_failed",
    "nvml_success == r",
)
"""The same of any memory: bitsandbytes, NCCL, cuBLAS, cuDNN. The last is torch's allocator, which asks NVML how much is
free before it says that it lacks memory, and trips over the answer of a MIG slice (pytorch/pytorch#112377)."""
MARGIN, MOST_MARGIN_BYTES = 0.03, 256 * 2**20
"""Share of a limit, at most so many bytes: this near, it is about to be hit."""
KEPT_MARGINS = 4
"""Times this margin: so near, freed memory is no longer kept."""
INTERVAL_S = 0.02


class OutOfMemory(Exception):
    """Memory ran out during a step, or was about to."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(reason)
        self.where = where
        self.reason = reason
        self.step: int | None = None
        """The last completed step that has been saved; none where it is an older checkpoint's."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory from every other error."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemory)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    if not isinstance(error, RuntimeError):
        return False
    return _has(said, MARKS) or (_has(said, HALF_SAID) and _is_short(*host_memory()))


def _has(said: str, marks: Sequence[str]) -> bool:
    return any(mark in said for mark in marks)


def which_memory(error: BaseException) -> str:
    """Return which memory ran out: "host" or "device"."""
    if isinstance(error, OutOfMemory):
        return error.where
    if isinstance(error, torch.OutOfMemoryError):
        return "device"
    of_host = isinstance(error, (MemoryError, OSError)) or _has(str(error).lower(), (*LACKING, *HALF_SAID))
    return "host" if of_host or _was_pinning(error) else "device"


def _was_pinning(error: BaseException) -> bool:
    """Whether memory was to be pinned as an error came up: CUDA has one word for both memories that ran out.

    It is DeepSpeed that pins by torch, in a function of its own of this name; what is pinned here tells by itself.
    """
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "pin_memory" for frame, _ in frames)


class HostWatch:
    """Gives back what the heap keeps when the host's memory runs short; interrupts the main thread when it runs out.

    A thread looks every 20 ms, and a signal brings the news: what runs in Python between two operations is interrupted
    at once, a backward pass at its end. Where memory goes faster than that the kernel kills, and the launcher sees it.
    """

    def __init__(self, free_bytes: Callable[[], tuple[int, int]]) -> None:
        """`free_bytes` returns the memory that this process may use, and what is free of it."""
        self._free_bytes = free_bytes
        self._done = threading.Event()
        self._previous: object = None

    def __enter__(self) -> "HostWatch":
        """Begin to watch; outside of the main thread, and without signals, nothing is done."""
        if hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, _raise)
            self._thread = threading.Thread(target=self._watch, name="host memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._done.set()
        if self._previous is not None:
            self._thread.join()
            signal.signal(signal.SIGUSR1, self._previous)  # type: ignore[arg-type]

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            if self._runs_out():
                self._done.set()
                os.kill(os.getpid(), signal.SIGUSR1)

    def _runs_out(self) -> bool:
        try:
            total, free = self._free_bytes()
            if free < KEPT_MARGINS * _margin(total) and hand_back():
                return False  # look again
        except (OSError, ValueError, psutil.Error):  # a file of the kernel's that is changing: look again
            return False
        except MemoryError:  # nothing is left to look with
            return True
        return _is_short(total, free)


def _margin(total: int) -> float:
    return min(MARGIN * total, MOST_MARGIN_BYTES)


def _is_short(total: int, free: int) -> bool:
    return free < _margin(total)


def _raise(number: int, frame: FrameType | None) -> None:
    raise OutOfMemory("host", tr("the host's memory is about to run out"))
