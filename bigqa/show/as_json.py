"""What was found, for programs. In: a `Probe`, or needs. Out: one JSON text; its keys stay."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from bigqa.plan.candidates import Candidate
from bigqa.plan.files import SCHEMA
from bigqa.plan.need import Need
from bigqa.plan.probe import Probe

PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_gpu_bytes", "peak_host_bytes", "pinned_bytes",
         "disk_bytes", "breakdown", "peak_phase", "largest_tensors")  # fmt: skip


def need_json(rows: Sequence[Need]) -> str:
    """Return how much GPU memory is enough, one object for each strategy."""
    return json.dumps([dataclasses.asdict(row) for row in rows])


def probe_json(found: Probe) -> str:
    """Return everything that was found as one object."""
    value = {
        "schema": SCHEMA,
        "hardware": found.hardware.model_dump(mode="json")
        | {"gpu": found.gpu.model_dump(mode="json") if found.gpu else None, "num_gpus": found.num_gpus},
        "model": {"name": found.question.model, "parameters": found.num_parameters},
        "workload": found.workload.model_dump(mode="json"),
        "candidates": [_as_row(candidate) for candidate in found.candidates],
        "choice": found.chosen.name if found.chosen else None,
        "without_kernels": found.without_kernels,
    }
    return json.dumps(value, ensure_ascii=False)


def _as_row(candidate: Candidate) -> dict[str, Any]:
    memory = candidate.memory
    peaks = {
        "peak_allocated_bytes": memory.allocated_bytes,
        "peak_reserved_bytes": memory.reserved_bytes,
        "peak_gpu_bytes": memory.device_bytes,
        "peak_host_bytes": memory.host_bytes,
        "pinned_bytes": memory.pinned_bytes,
        "disk_bytes": memory.disk_bytes,
        "breakdown": memory.by_category,
        "peak_phase": memory.phase,
        "largest_tensors": [{"made_by": name, "bytes": size} for name, size in memory.largest],
    } if memory else dict.fromkeys(PEAKS)  # fmt: skip
    fields = ("tier", "micro_batch", "grad_accum", "seq_len", "fits", "verdict", "reason", "limit_bytes")
    speeds = ("samples_per_s", "step_s", "run_s", "speed_source", "speed_error")
    row = {"strategy": candidate.name, "axes": candidate.strategy.model_dump(mode="json")}
    return row | {name: getattr(candidate, name) for name in (*fields, *speeds)} | peaks
