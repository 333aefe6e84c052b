"""What torch does not pass on of CUDA's runtime, called in the library that torch has loaded. In: an address."""

import ctypes
import functools
import sys
from typing import Any

import torch


def free(address: int) -> None:
    """Free memory that CUDA gave out, managed memory too, once nothing on the device works with it any more."""
    runtime = _runtime()
    if runtime is not None:
        runtime.cudaFree(ctypes.c_void_p(address))


def forget_error() -> None:
    """Take CUDA's last error away, which was told already: else the next kernel is taken to have failed with it."""
    runtime = _runtime()
    if runtime is not None:
        runtime.cudaGetLastError()


@functools.cache
def _runtime() -> Any:
    """Return the runtime; none where torch is no build for NVIDIA's cards, or has it under another name."""
    if torch.version.cuda is None:
        return None
    major = torch.version.cuda.partition(".")[0]
    try:
        return ctypes.CDLL(f"cudart64_{major}.dll" if sys.platform == "win32" else f"libcudart.so.{major}")
    except OSError:
        return None
