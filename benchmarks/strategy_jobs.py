"""Short trainings of the embedded sample under many strategies, many in one process. In: jobs. Out: run folders.

Used by `benchmarks.strategies` and `tests/test_strategies.py`.
"""

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bigqa.sample import FOLDER
from bigqa.strategy import STRATEGIES

ROOT = Path(__file__).parents[1]
REFERENCE = "plain-fp32"
ZERO = ["zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"]
NVME = "zero3-nvme"
EXACT = ["plain", "recompute", "selective", "offload-activations"]
ROUNDED = ["8bit", "8bit-recompute", "stochastic", "stochastic-8bit-recompute"]
RELEASED = ["release-recompute", "cpu-least"]
ADAPTERS = ["lora", "qlora-recompute"]
STREAMED = "stream"
OPTIONS = {
    "model": "tiny",
    "train_file": str(FOLDER / "train.json"),
    "limit": 64,
    "device": "cpu",
    "global_batch": 4,
    "dropout": 0.0,
    "check": False,
}
Job = dict[str, Any]


def why_no_nvme() -> str | None:
    """Say what DeepSpeed's disk offload lacks here: it compiles itself against libaio at first use."""
    if ctypes.util.find_library("aio") is None or not Path("/usr/include/libaio.h").is_file():
        return "no libaio with its header: apt-get install libaio-dev"
    missing = [program for program in ("c++", "ninja") if shutil.which(program) is None]
    return f"{missing[0]} is not on PATH" if missing else None


def job(
    out: Path, name: str, options: dict[str, Any], micro_batch: int = 2, resume: Path | None = None, **axes: Any
) -> Job:
    """Return a training under a strategy, as `--plan` gives it."""
    plan = out.parent / f"{out.name}-plan.json"
    strategy = STRATEGIES[name].model_copy(update={"device": "cpu"} | axes)
    settings = {"strategy": strategy.model_dump(), "micro_batch": micro_batch}
    if strategy.precision != "bf16-sr":
        settings["precision"] = strategy.precision  # and not what this CPU is best at
    plan.write_text(json.dumps({"settings": settings}), encoding="utf-8")
    disk = {"nvme": str(out.parent / f"{out.name}-disk")} if STRATEGIES[name].needs_disk else {}
    options = {"check": False} if resume else options
    return {"out": str(out), "options": options | disk | {"plan": str(plan)}, "resume": resume and str(resume)}


def run_jobs(folder: Path, jobs: list[Job], num_processes: int = 1, timeout_s: int = 3600) -> None:
    """Run jobs in order, in one process or in each of several. Raises: RuntimeError with the last words of theirs."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m"]
    if num_processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes), "-m"]
    command += ["benchmarks.strategy_worker", str(file)]
    environment = {"BIGQA_CACHE": str(folder / "cache")} | os.environ
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-4000:])


def losses(run: Path) -> list[float]:
    """Return the loss of each step of a run."""
    return _figures(run, "loss")


def norms(run: Path) -> list[float]:
    """Return the norm of each step's gradient, before it is clipped."""
    return _figures(run, "grad_norm")


def _figures(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def built(run: Path, rank: int = 0) -> dict[str, Any]:
    """Return what a run's last start was made of, as its process saw it; see `benchmarks.built`."""
    found: dict[str, Any] = json.loads((run / f"built-{rank}.json").read_text(encoding="utf-8"))
    return found


def difference(one: list[float], other: list[float]) -> float:
    """Return the largest relative difference of a step's figure."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))
