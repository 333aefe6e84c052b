"""Runs on a GPU that is not there. In: this process's environment. Out: another process, which sees the card.

Kernels are not run: numbers mean nothing, and of a run its steps, files, windows and ends are compared. Memory is
counted as on a card, and runs out as on one.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.nullgpu.build import libraries_for
from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import ask
from bigqa.nullgpu.torch_build import cuda_build

CARD = "A100-40"
ROOM = 4 * 2**30


def environment() -> dict[str, str] | None:
    """Return the environment of a program that sees the card; none where torch's CUDA build is not here."""
    python = ask(Path(sys.executable))
    try:
        torch = cuda_build(python, install=False)
        libraries = libraries_for(python, torch, install=False)
    except BigqaError:
        return None
    gpu = NullGpu(find_card(CARD), memory_bytes=ROOM, context_bytes=0)
    return variables(gpu, libraries, () if python.torch == torch else (torch.folder,), os.environ)


def answers() -> Any:
    """Answer what a run asks the device as a sound one would, from now on; to be kept."""
    from bigqa.rehearse.own import answered_yes
    from bigqa.rehearse.run import INSIDE

    if str(INSIDE) not in sys.path:
        sys.path.insert(0, str(INSIDE))
    from bigqa_rehearsal.reads import Reads

    reads = Reads([], answered_yes())
    reads.start()
    return reads


def crowd(left: int) -> None:
    """Have another program take all of the card but so many bytes."""
    import torch

    torch.cuda.empty_cache()
    size = max(0, torch.cuda.mem_get_info()[0] - left)
    ctypes.CDLL("libcuda.so.1").null_take(0, ctypes.c_size_t(size))
