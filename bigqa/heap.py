"""The C library's heap, set so that freed tensors leave the process at once. In: nothing. Out: nothing.

glibc raises its threshold for mapping an allocation of its own up to 32 MiB as it goes, then keeps and scatters what
was freed: a run held 1.4 to 1.7 times what its tensors need. With the threshold held at 1 MiB, resident memory follows
the live tensors to half a percent, which is what makes it predictable. Huge pages pay for most of the page faults that
this costs; `BIGQA_HEAP=fast` keeps glibc's ways where memory is plenty. Figures: benchmarks/LOG.md.
"""

import ctypes
import os
import sys

M_MMAP_THRESHOLD = -3
THRESHOLD_BYTES = 2**20


def hold_tight() -> None:
    """Set the heap of this process. Call it before torch is imported."""
    if os.environ.get("BIGQA_HEAP") == "fast" or not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
    except (OSError, AttributeError):  # another C library: nothing to set
        return
