"""What is measured once per card: its rates, its context, cuBLAS' workspace; and a profile of the fastest step.

In: a CUDA GPU. Out: `device.json`, or with `--profile` `profile.txt`. Run: `python -m benchmarks.gpu_device --out DIR`.
"""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import pynvml
import torch
from torch.profiler import ProfilerActivity, profile

from bigqa.bench import worker
from bigqa.bench.report import Case
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.step import train_step
from bigqa.engine.processes import Processes
from bigqa.files import write_json, write_text
from bigqa.machine.hardware import detect
from bigqa.speed.calibration import calibrate
from bigqa.strategy import STRATEGIES
from bigqa.versions import commit, versions

FASTEST = {"model": "enliple-large-v1", "strategy": "plain", "axes": STRATEGIES["plain"], "seq_len": 384}


def memory_facts() -> dict[str, int]:
    """Return what a context takes, and what torch keeps after a first product. Call it before anything is on the card.

    Units: bytes.
    """
    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)

    def used() -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(card).used)

    before = used()
    tiny = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    bare = used() - before - torch.cuda.memory_reserved()
    a = torch.zeros(256, 256, device="cuda", dtype=torch.bfloat16)
    kept = torch.cuda.memory_allocated()
    product = a @ a
    torch.cuda.synchronize()
    workspace = torch.cuda.memory_allocated() - kept - product.numel() * product.element_size()
    loaded = used() - before - torch.cuda.memory_reserved()
    del tiny
    return {"context_bytes": bare, "context_with_cublas_bytes": loaded, "cublas_workspace_bytes": workspace}


def step_profile(folder: Path, model: str, micro_batch: int = 32) -> str:
    """Return where the time of a step goes, by kernel."""
    case = Case.model_validate(
        FASTEST | {"model": model, "micro_batch": micro_batch, "global_batch": micro_batch, "steps": 1}
    )
    settings = worker.settings_of(case, folder)
    training = worker.training_of(case, settings, Processes("cuda"), Silent())
    feed = training.feed()
    batches = feed.take(0)
    for _ in range(3):
        train_step(training.parts, batches, micro_batch)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        train_step(training.parts, batches, micro_batch)
        torch.cuda.synchronize()
    feed.close()
    table: str = found.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=70)
    return table


def main() -> None:
    """Measure, or profile."""
    parser = argparse.ArgumentParser(description="Facts of this card.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--model", default=FASTEST["model"], help="whose step is profiled")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.profile:
        write_text(options.out / "profile.txt", step_profile(options.out, options.model))
        return
    facts: dict[str, Any] = memory_facts()
    hardware = detect()
    rates = {name: dataclasses.asdict(found) for name, found in calibrate(hardware).items()}
    machine = {"hardware": hardware.model_dump(mode="json"), "versions": versions(), "commit": commit()}
    write_json(options.out / "device.json", facts | {"rates": rates} | machine)


if __name__ == "__main__":
    main()
