"""Cells of one card, each trained in a process of its own. Run by `benchmarks.null_gpu` on a null GPU.

In: cells as JSON, one a line, on standard input. Out: the same with what was measured, one a line, on standard output.
Libraries are imported and models are made once; what a cell is trained in is a fork that is the first to touch CUDA.
"""

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.null_cells import SHAPES
from benchmarks.null_host import unfilled
from bigqa.bench.report import Case
from bigqa.bench.worker import model_of, settings_of, training_of
from bigqa.console import quiet_libraries
from bigqa.engine import build, recovery
from bigqa.engine.attention.packing import can_pack
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.pinned import pinned_by_all
from bigqa.engine.processes import Processes
from bigqa.engine.stream.update import StreamedUpdate
from bigqa.memory.depth import with_layers
from bigqa.models.sources import first_position, load_config, load_model, resolve
from bigqa.tasks.qa.task import QuestionAnswering

ANSWER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)


class _Padded:
    """Whether the windows of this case are of several lengths: one alone is never padded."""

    is_so = False


def _answered(size: int) -> int:
    """Say yes to whoever reads a value, such as whether a norm is finite, or whether no window is padded where so."""
    frame: FrameType | None = sys._getframe() if _Padded.is_so else None
    while frame is not None and not frame.f_code.co_filename.endswith("masking_utils.py"):
        frame = frame.f_back
    return int(frame is None)


_yes = ANSWER(_answered)
_models: dict[str, nn.Module] = {}
_packs: dict[str, bool] = {}
OUT_OF_MEMORY = (torch.OutOfMemoryError, recovery.OutOfMemory)
MANAGED = 4
"""Of `null_kind`."""
LAYERS_TRIED = 2
"""Of each model, to tell whether it packs: all are of the same code, and ModernBERT's two kinds are the first."""

TOKENS_TRIED = 1000
LONGEST_S = 3600
"""Of a cell, which takes a second, and on a machine with much else to do minutes: what hangs is no cell for ever."""


def measure(case: Case, gpus: int, cards: dict[str, str]) -> dict[str, Any]:
    """Train a case's steps in this process; return its peaks in bytes. `cards`: not those of the environment."""
    os.environ |= cards
    library = ctypes.CDLL("libcuda.so.1")
    if not case.axes.needs_deepspeed:  # which asks whether there was an overflow: zeros say no
        library.null_on_read(_yes)  # whether a norm is finite, as fp16 asks
    library.null_most_of.restype = ctypes.c_size_t
    packs, _Padded.is_so = _packs[case.model], case.micro_batch > 1
    with tempfile.TemporaryDirectory() as folder, patch.object(build, "can_pack", lambda *args: packs):
        settings = settings_of(case, Path(folder))
        if gpus > 1:
            join(gpus)
        processes = Processes(settings.device)
        with unfilled():
            training = training_of(case, settings, processes, Silent(), _models[case.model])
        with _no_step_on_the_host(case):
            fit(training)
    return {
        "outcome": "ok",
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "pinned": pinned_by_all(),
        "managed": int(library.null_most_of(MANAGED)),
    }


def _no_step_on_the_host(case: Case) -> Any:
    """Leave out what an Adam on the host does with memory that nobody looks at."""
    if case.axes.stream:
        nothing = {"_take": lambda self, unit, landed: landed(), "_norm": lambda self: torch.zeros(())}
        return patch.multiple(StreamedUpdate, _step_one=lambda *args: None, **nothing)
    if case.axes.offload_optimizer == "none":
        return contextlib.nullcontext()
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return patch.object(DeepSpeedCPUAdam, "step", lambda *args: None)


def join(gpus: int) -> None:
    """Be the first of so many processes; the others are not there, and the null GPU's NCCL does without them."""
    own = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": gpus, "LOCAL_WORLD_SIZE": gpus, "MASTER_PORT": 1}
    os.environ |= {name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=gpus)


def packs(model: str) -> dict[str, Any]:
    """Try whether a model packs, with weights: on its first layers and a few tokens, which are enough to tell."""
    source = resolve(model)
    config = with_layers(load_config(source), LAYERS_TRIED)
    config.vocab_size, config.pad_token_id = TOKENS_TRIED, min(config.pad_token_id or 0, 1)
    takes_types = getattr(config, "type_vocab_size", 0) > 1
    task = QuestionAnswering(config.pad_token_id, takes_types, first_position(config))
    made = load_model(source.model_copy(update={"has_weights": False}), config)
    build.attention.use(made)
    return {"packs": can_pack(made, task, max(length for _, length in SHAPES))}


def in_a_fork(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Call a function in a fork; return what it found, or its traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(LONGEST_S)
        try:
            found = function(*args)
        except BaseException as error:
            is_short = any(isinstance(one, OUT_OF_MEMORY) for one in (error, error.__cause__))
            found = {"outcome": "out of memory" if is_short else "failed", "traceback": traceback.format_exc()[-4000:]}
        with os.fdopen(writing, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"outcome": "failed", "traceback": f"ended with status {status}"}


def prepare(case: Case, packs_known: bool | None) -> None:
    """Make what every fork of a model shares, unless it is there."""
    if case.model not in _models:
        _models.clear()
        with unfilled():
            _models[case.model] = model_of(case, seed=42)
        gc.freeze()  # a fork's collector would write to every object
    if packs_known is not None:
        _packs[case.model] = packs_known  # as the worker of another card has found
    elif case.model not in _packs:
        _packs[case.model] = in_a_fork(packs, case.model)["packs"]


def import_libraries(capability: tuple[int, int]) -> None:
    """Import what strategies import, before there are forks.

    bitsandbytes asks for the card, which begins CUDA, and whether there is one, after which torch lets no fork use it
    unless NVML was asked.
    """
    asks_nvml = patch.dict(os.environ, PYTORCH_NVML_BASED_CUDA_CHECK="1")
    with asks_nvml, patch.object(torch.cuda, "get_device_capability", lambda *args: capability):
        import bitsandbytes  # noqa: F401
        import deepspeed.ops.adam  # noqa: F401
        import peft  # noqa: F401

        from bigqa.engine.optim import eight_bit  # noqa: F401
    assert not torch.cuda.is_initialized()


def main() -> None:
    """Measure the cells that are asked for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    major, minor = map(int, sys.argv[1].split("."))
    import_libraries((major, minor))
    for line in sys.stdin:
        cell = json.loads(line)
        case = Case.model_validate(cell["case"])
        try:
            prepare(case, cell["packs"])
            found = in_a_fork(measure, case, cell["gpus"], cell.get("environment", {}))
        except Exception:  # of making the model
            found = {"outcome": "failed", "traceback": traceback.format_exc()[-4000:]}
        print(json.dumps(found | {"packs": _packs.get(case.model)}), file=answers, flush=True)


if __name__ == "__main__":
    quiet_libraries()
    main()
