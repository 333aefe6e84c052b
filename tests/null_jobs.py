"""Many runs of bigqa's own trainer on GPUs that are not there, each start in a fork with a card of its own.

Run on a null GPU: `python null_jobs.py`. In: jobs, one JSON a line, `{"card", "count", "options", "resume"}`, and
`crowded`, a part of the first start during which another program takes what is left of the card. Out: what
became of each, one a line: its starts, where memory ran out in each, and the traceback of one that failed. A start that
asks to be gone on with (the ladder) is, in the next fork, as `bigqa train` and its launcher do.
"""

import contextlib
import ctypes
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bigqa.console import quiet_libraries
from bigqa.engine.loop import fit
from bigqa.plan.ladder import AGAIN
from bigqa.rehearse.own import answered_yes
from bigqa.run import delivery
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import CHANGEABLE, settings_from

sys.path.insert(0, os.environ["BIGQA_INSIDE"])
from bigqa_rehearsal.places import stack_of
from bigqa_rehearsal.reads import Reads

PATHS = ("train_file", "dev_file", "plan", "nvme", "out")
FUNCTIONS = {
    "window_logits": "evaluation", "_forward_in_parts": "evaluation", "hand_over": "hand-over",
    "save": "saving", "save_alone": "saving", "step": "step", "accumulate": "forward", "build": "placing",
}  # fmt: skip
"""Of our own code, the innermost of which tells what was being done; the backward pass runs in a thread of torch's."""


def phase_of(stack: list[dict[str, Any]]) -> str:
    """Return what a stack was doing."""
    for place in stack:
        if "/bigqa/" in place["file"] and place["name"] in FUNCTIONS:
            return FUNCTIONS[place["name"]]
        if place["name"] == "_engine_run_backward":
            return "backward"
    return "backward" if len(stack) < 3 else "other"


class Watch:
    """Notes where memory ran out, and when more was taken of the card than ever before."""

    def __init__(self) -> None:
        self.reads = Reads([], answered_yes())
        self.reads.start()
        self.short: list[str] = []
        torch.cuda._lazy_call(lambda: torch._C._cuda_attach_out_of_memory_observer(self._note))

    def _note(self, device: int, wanted: int, total: int, free: int) -> None:
        self.short.append(phase_of(stack_of(sys._getframe())))


FILLING = 5 * 2**18
"""Bytes: a block of torch's pool of large ones."""
CROWDED = {"save": (fit, "save"), "score": (delivery, "_score")}


def crowd(part: str) -> None:
    """Have another program take what is left of the card during a part of the run, and torch's own cache be full."""
    owner, name = CROWDED[part]
    function = getattr(owner, name)

    def crowded(*args: Any, **options: Any) -> Any:
        torch.cuda.empty_cache()
        library, left = ctypes.CDLL("libcuda.so.1"), ctypes.c_size_t(torch.cuda.mem_get_info()[0])
        library.null_take(0, left)
        held = []
        try:
            with contextlib.suppress(torch.OutOfMemoryError):
                while True:
                    held.append(torch.empty(FILLING, dtype=torch.uint8, device="cuda"))
            return function(*args, **options)
        finally:
            library.null_give(0, left)

    setattr(owner, name, crowded)


def join(ranks: int) -> None:
    """Be the first of so many processes: the others are not there, and the null GPU's NCCL does without them."""
    own = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": 1}
    os.environ |= {name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=ranks)


def start(job: dict[str, Any], resume: bool) -> tuple[int, dict[str, Any]]:
    """Take a run up in this process; return its exit code, and what was seen."""
    watch = Watch()
    if job.get("ranks", 1) > 1:
        join(job["ranks"])
    if job.get("crowded") and not resume:
        crowd(job["crowded"])
    given = {name: value for name, value in job["options"].items() if value is not None}
    options = {name: Path(value) if name in PATHS else value for name, value in given.items()}
    out = options["out"]
    changes = {name: value for name, value in options.items() if name in CHANGEABLE} if job.get("resume") else {}
    code, trace = 0, ""
    try:
        settings = settings_from(changes, out) if resume else settings_from(options, None)
        fine_tune(settings, resume=resume)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        code, trace = 1, traceback.format_exc()[-6000:]
    facts: dict[str, Any] = {"code": code, "short": watch.short, "traceback": trace}
    if torch.cuda.is_initialized():
        facts |= {"used": watch.reads.most_used(0), "allocated": torch.cuda.max_memory_allocated()}
    return code, facts


def in_a_fork(work: Callable[[], dict[str, Any]], environment: dict[str, str]) -> dict[str, Any]:
    """Do work in a fork; return what it returns."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.environ.update(environment)
        with os.fdopen(writing, "w") as file:
            try:
                json.dump(work(), file)
            except BaseException:
                json.dump({"code": 1, "traceback": traceback.format_exc()}, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"code": 1, "traceback": f"ended with status {status}"}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job to its end, whatever steps down."""
    environment = {"BIGQA_NULL_CARD": job["card"], "BIGQA_NULL_COUNT": str(job.get("count", 1))}
    begun, starts, resume = time.monotonic(), [], bool(job.get("resume"))
    while not starts or starts[-1]["code"] == AGAIN:
        again = resume or bool(starts)
        starts.append(in_a_fork(lambda again=again: start(job, again)[1], environment))  # type: ignore[misc]
    return {"starts": starts, "seconds": round(time.monotonic() - begun, 1)}


def import_libraries() -> None:
    """Import what strategies import, before there are forks.

    bitsandbytes asks for the card, which would begin CUDA here, and whether there is one, after which torch lets no
    fork use it unless NVML was asked.
    """
    asks_nvml = patch.dict(os.environ, PYTORCH_NVML_BASED_CUDA_CHECK="1")
    with asks_nvml, patch.object(torch.cuda, "get_device_capability", lambda *_: (8, 0)):
        for name in ("bitsandbytes", "peft", "deepspeed", "bigqa.engine.optim.eight_bit"):
            importlib.import_module(name)
    assert not torch.cuda.is_initialized()


def main() -> None:
    """Answer job for job."""
    quiet_libraries()
    import_libraries()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
