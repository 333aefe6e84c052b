"""Cells of one card, each trained in a process of its own. Run by `benchmarks.null_gpu` on a null GPU.

In: cells as JSON, one a line, on standard input. Out: the same with what was measured, one a line, on standard output.
Libraries are imported and models are made once; what a cell is trained in is a fork that is the first to touch CUDA.
"""

import ctypes
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigqa.bench.report import Case
from bigqa.bench.worker import model_of, settings_of, training_of
from bigqa.console import quiet_libraries
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.pinned import pinned_by_all
from bigqa.engine.processes import Processes

ANSWER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)
_yes = ANSWER(lambda size: 1)
_models: dict[str, nn.Module] = {}
MANAGED = 4
"""Of `null_kind`."""


def measure(case: Case) -> dict[str, Any]:
    """Train a case's steps in this process; return its peaks in bytes."""
    library = ctypes.CDLL("libcuda.so.1")
    library.null_on_read(_yes)  # whether a norm is finite, as fp16 asks
    library.null_most_of.restype = ctypes.c_size_t
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(case, Path(folder))
        processes = Processes(settings.device)
        fit(training_of(case, settings, processes, Silent(), _models[case.model]))
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "pinned": pinned_by_all(),
        "managed": int(library.null_most_of(MANAGED)),
    }


def in_a_fork(case: Case) -> dict[str, Any]:
    """Measure in a fork; return what it found, or its traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            found = {"outcome": "ok"} | measure(case)
        except BaseException:
            found = {"outcome": "failed", "traceback": traceback.format_exc()[-4000:]}
        with os.fdopen(writing, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"outcome": "failed", "traceback": f"ended with status {status}"}


def main() -> None:
    """Measure the cells that are asked for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        cell = json.loads(line)
        case = Case.model_validate(cell["case"])
        if case.model not in _models:
            _models.clear()
            _models[case.model] = model_of(case, seed=42)
        print(json.dumps({"key": cell["key"]} | in_a_fork(case)), file=answers, flush=True)


if __name__ == "__main__":
    quiet_libraries()
    main()
