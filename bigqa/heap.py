"""How this process keeps memory that tensors gave back. Call it before torch is imported.

glibc hands blocks of more than 128 KiB, later of up to 32 MiB, back to the kernel, which fills them with zeros when
they are wanted again: half of a training step's time. So freed blocks are kept, which costs a tenth of memory. With
BIGQA_HEAP=tight they are handed back, and resident memory is that of the live tensors.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**31 - 1
TIGHT_BYTES = 2**20
PRIMITIVES = "512"
"""Of oneDNN's kernels kept for sizes that come again; its own 1024 can grow to several hundred MiB."""


def set_up() -> None:
    """Set the heap of this process."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)  # read at oneDNN's first kernel
    if not sys.platform.startswith("linux"):
        return
    tight = os.environ.get("BIGQA_HEAP") == "tight"
    if tight:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    try:
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, TIGHT_BYTES if tight else KEPT_BYTES)
        if not tight:
            library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    except (OSError, AttributeError):  # another C library: nothing to set
        return
