"""What tests of rehearsals share. In: sizes, fields. Out: what is near a size; a plan's file."""

import json
from pathlib import Path
from typing import Any

import pytest

from bigqa.units import MIB

ROUNDED = 8 * 512


def near(size: float) -> Any:
    return pytest.approx(size, abs=ROUNDED)


def plan_file(folder: Path, **more: Any) -> Path:
    """Write a plan as `bigqa probe --gpu T4 --gpu-memory 8GiB --gpus 2 --out` does, as far as a rehearsal reads it."""
    gpu = {"name": "T4", "total_bytes": 8192 * MIB, "model": {"memory_mib": 15360}}
    rung = {"name": "recompute", "micro_batch": 3}
    settings = {"model": "tiny", "device": "cuda", "micro_batch": 4, "ladder": [rung]}
    memory = {"allocated_bytes": 5 * MIB, "reserved_bytes": 6 * MIB, "device_bytes": 170 * MIB}
    plan = {"settings": settings, "gpu": gpu, "num_gpus": 2, "predicted": {"memory": memory}} | more
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    return file
