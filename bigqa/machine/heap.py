"""Whether this process keeps memory that tensors gave back. In: nothing, then what a run needs and has. Out: nothing.

Tight, from the start: a block of more than 256 KiB goes back to the kernel when its tensor is freed. Resident memory is
then that of the live tensors, which is what makes it predictable. But the kernel fills a block with zeros each time
that it is wanted again, a third of a training step's time. So where memory is plenty, freed blocks are kept, and given
back should it run short after all. BIGQA_HEAP=tight or fast decides instead. Figures: benchmarks/LOG.md.
"""

import contextlib
import ctypes
import gc
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TIGHT_BYTES, KEPT_BYTES = 2**18, 2**31 - 1
PLENTY = 1.25
"""Times the need. Kept blocks have taken up to 1.9 times it; where that is too much, they are handed back in time."""
_is_kept = False
PRIMITIVES = "512"
"""Of oneDNN's kernels kept for sizes that come again; its own 1024 can grow to several hundred MiB."""


SELDOM = 50_000
_ever = gc.get_threshold()


def hold_tight() -> None:
    """Give freed memory back. Call it before torch is imported.

    What is imported stays: until there is training, Python's collector looks at it less often. Looking at all of it
    again and again took a seventh of a command's time.
    """
    gc.set_threshold(SELDOM)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)  # read at oneDNN's first kernel
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    if os.environ.get("BIGQA_HEAP") == "fast":
        _set(KEPT_BYTES)
    else:
        _set(TIGHT_BYTES)


def collect_as_ever() -> None:
    """Let Python's collector look as often as it does by itself: what a step leaves in a circle may hold tensors."""
    gc.set_threshold(*_ever)


def give_back() -> bool:
    """From now on, give freed memory back; what torch allocates is in huge pages only after `hold_tight`."""
    return _set(TIGHT_BYTES)


def keep() -> bool:
    """From now on, keep freed memory."""
    return _set(KEPT_BYTES)


def plenty(need_bytes: int, free_bytes: int) -> bool:
    """Whether there is so much memory that a run keeps what tensors gave back."""
    asked = os.environ.get("BIGQA_HEAP")
    return asked == "fast" or (asked != "tight" and need_bytes * PLENTY <= free_bytes)


def keep_if_plenty(need_bytes: int, free_bytes: int) -> bool:
    """Keep freed memory where there is plenty; return whether it is kept."""
    return plenty(need_bytes, free_bytes) and keep()


def hand_back() -> bool:
    """Give back what was kept, and from now on what is freed; return whether anything was kept. From any thread."""
    if not (_is_kept and give_back()):
        return False
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    return True


def _set(threshold_bytes: int) -> bool:
    global _is_kept
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        if library.mallopt(M_MMAP_THRESHOLD, threshold_bytes) != 1:  # refused: nothing is kept
            return False
        # At the end of the heap too; -1 is never, where the largest number would be from 2 GiB on.
        library.mallopt(M_TRIM_THRESHOLD, -1 if threshold_bytes == KEPT_BYTES else threshold_bytes)
    except (OSError, AttributeError):  # another C library: nothing to set
        return False
    _is_kept = threshold_bytes == KEPT_BYTES
    return True
