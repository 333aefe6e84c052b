"""How a program is made to see the null GPU. In: the card, the libraries. Out: environment variables.

Libraries are preloaded by their bare names, so that they win over NVIDIA's where those are installed, in every process
that the program starts. A real GPU is never touched: the libraries that would lead to it are replaced.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from bigqa.nullgpu.cards import SIGN, NullGpu

DROPPED = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "DS_ACCELERATOR")
"""What they say of this machine's own GPUs is not meant for one that is not there."""


def on_null_gpu() -> bool:
    """Whether this process sees a null GPU."""
    return SIGN in os.environ


def variables(
    gpu: NullGpu, libraries: Path, python_paths: tuple[Path, ...], inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the whole environment of a program.

    Args:
        gpu: the cards.
        libraries: the folder of the built ones.
        python_paths: what its Pythons look into first.
        inherited: the environment to begin with.
    """
    found = {name: value for name, value in inherited.items() if name not in DROPPED}
    preloaded = ":".join(sorted(file.name for file in libraries.glob("lib*.so.*")))
    found |= {
        **gpu.variables(),
        "BIGQA_NULL_BOUND": gpu.bound,
        "DS_ACCELERATOR": "cuda",  # DeepSpeed looks for /dev/nvidiactl
        "LD_PRELOAD": _before(preloaded, found.get("LD_PRELOAD")),
        "LD_LIBRARY_PATH": _before(str(libraries), found.get("LD_LIBRARY_PATH")),
        "PYTHONPATH": _before(":".join(map(str, python_paths)), found.get("PYTHONPATH")),
    }
    return {name: value for name, value in found.items() if value or name in inherited}


def _before(first: str, then: str | None) -> str:
    return ":".join(part for part in (first, then) if part)
