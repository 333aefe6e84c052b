"""What the tests of the null GPU share: a program run on it, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigqa.errors import BigqaError
from bigqa.nullgpu.build import libraries_for
from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import ask
from bigqa.nullgpu.torch_build import cuda_build
from bigqa.rehearse.run import INSIDE

INSTALL = bool(os.environ.get("BIGQA_NULL_INSTALL"))
ROOT = Path(__file__).parents[1]
END = "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"
"""A thread of autograd's that lets go of Python objects as Python ends takes the process with it: "terminate called
without an active exception". The short programs of these tests end right behind their backward passes."""


def environment_of(gpu: NullGpu) -> dict[str, str]:
    """Return the environment of a program on a card: torch's CUDA build, this code, what looks on in rehearsals."""
    python = ask(Path(sys.executable))
    try:
        torch = cuda_build(python, install=INSTALL)
        libraries = libraries_for(python, torch, install=INSTALL)
    except BigqaError as error:
        pytest.fail(f"{error} (make test-null-gpu)")
    paths = () if python.torch == torch else (torch.folder,)
    return variables(gpu, libraries, (*paths, ROOT, ROOT / "tests"), os.environ) | {"BIGQA_INSIDE": str(INSIDE)}


def on_null_gpu(program: str, card: str = "A100-80", environment: dict[str, str] | None = None, **fields: Any) -> Any:
    """Run a program with torch's CUDA build on a card; return the JSON value that its last line prints."""
    gpu = NullGpu(find_card(card), **{"context_bytes": 0, **fields})
    env = environment_of(gpu) | (environment or {})
    done = subprocess.run([sys.executable, "-c", program + END], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
