"""The same bits from the same run on a GPU: `--deterministic`. In: whether it is wanted. Out: a block that holds to it.

On a CPU a run repeats without it. On a GPU the backward pass of attention adds gradients up in the order in which its
blocks happen to end, and cuBLAS may choose by what runs beside it. Asked to, attention adds up in a fixed order, in
more memory where windows are few (`memory.scratch`), and cuBLAS keeps to a workspace of 128 KiB: both are slower.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import torch

from bigqa.errors import BigqaError
from bigqa.language import tr

WORKSPACE_VARIABLE, WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":16:8"
"""What cuBLAS repeats with: this, or `:4096:8`, which takes 24 MiB more of each thread's memory and is faster."""
REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Have torch choose what repeats, within the block; it must be entered before CUDA is used.

    Raises: BigqaError where an operation of the model has no such form.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(WORKSPACE_VARIABLE, WORKSPACE)
    fills: Any = torch.utils.deterministic
    asked, filled = torch.are_deterministic_algorithms_enabled(), fills.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    fills.fill_uninitialized_memory = False  # nothing reads it
    try:
        yield
    except RuntimeError as error:
        refused = REFUSED.search(str(error))
        if refused is None:
            raise
        raise BigqaError(
            tr("--deterministic: {refused}, which this model uses, does not repeat; leave it out", refused=refused[1])
        ) from None
    finally:
        torch.use_deterministic_algorithms(asked)
        fills.fill_uninitialized_memory = filled
