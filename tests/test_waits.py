"""The host launches ahead of the GPU: no strategy makes it wait within a step, but where something must be known."""

from typing import Any

import pytest
import torch
from null_gpu import on_null_gpu
from torch import nn

from bigqa.engine.optim.optimizers import make_optimizer
from bigqa.strategy import Strategy


@pytest.mark.parametrize("kind", ["adamw8bit", "paged-adamw8bit"])
def test_no_parameter_is_waited_for(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    pytest.importorskip("bitsandbytes")
    waits: list[Any] = []
    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", waits.append)
    parameters = [nn.Parameter(torch.randn(size)) for size in (10, 5000, 7)]
    strategy = Strategy(precision="fp32", optimizer=kind, device="cpu")
    optimizer = make_optimizer(strategy, [{"params": parameters}], lr=1e-2, eps=1e-6)
    for _ in range(2):
        for parameter in parameters[:2]:
            parameter.grad = torch.ones_like(parameter)
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer.step()
        changed = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)]
        assert changed == [True, True, False]  # the last has no gradient
    assert waits == []


COUNTED = """
import json, tempfile, warnings
from pathlib import Path
import torch
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.step import train_step
from bigqa.engine.processes import Processes
found, processes, synchronize = {}, Processes("cuda"), torch.cuda.synchronize
for name in NAMES:
    axes = rows_on("cuda", "bf16", (name,))[name]
    case = Case(model="enliple-small", strategy=name, axes=axes, seq_len=64, micro_batch=2, global_batch=4, steps=1)
    training = worker.training_of(case, worker.settings_of(case, Path(tempfile.mkdtemp())), processes, Silent())
    feed, update = training.feed(), training.parts.update
    for step in range(2):
        batches = feed.take(step)
        update.begin(step, 1)
        count = 0
        def waited(*_):
            global count
            count += 1
            synchronize(*_)
        torch.cuda.synchronize = waited
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            train_step(training.parts, batches, 4)
        torch.cuda.set_sync_debug_mode(0)
    feed.close()
    waits = [warning for warning in told if "synchroniz" in str(warning.message)]
    found[name] = [count, sorted({f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits})]
print(json.dumps(found))
"""
WAITS = dict.fromkeys(
    ("plain", "recompute", "selective", "offload-activations", "8bit", "stochastic", "stochastic-release-recompute"), 0
) | {"paged-8bit-recompute": 1}


@pytest.mark.nullgpu
def test_no_step_waits_for_the_gpu() -> None:
    """In the second step, which makes nothing anew; bitsandbytes' own loop waits 199 times for the small model."""
    found = on_null_gpu(COUNTED.replace("NAMES", repr(list(WAITS))))
    assert found == {name: [count, []] for name, count in WAITS.items()}


FREED = """
import ctypes, gc, json, torch
from bigqa.engine.optim.optimizers import make_optimizer
from bigqa.strategy import Strategy
library = ctypes.CDLL("libcuda.so.1")
library.null_most_of.restype = ctypes.c_size_t
found = []
for _ in range(3):
    parameter = torch.nn.Parameter(torch.ones(1024, 1024, device="cuda"))
    parameter.grad = torch.ones_like(parameter)
    strategy = Strategy(precision="fp32", optimizer="paged-adamw8bit")
    optimizer = make_optimizer(strategy, [{"params": [parameter]}], lr=1e-3, eps=1e-6)
    optimizer.step()
    del optimizer
    gc.collect()
    found.append(library.null_most_of(4))
print(json.dumps(found))
"""


@pytest.mark.nullgpu
def test_paged_states_go_with_their_optimizer() -> None:
    """bitsandbytes never frees managed memory: a run that is begun again in the same process would hold it twice."""
    first, *more = on_null_gpu(FREED)
    assert first >= 2 * 1024 * 1024 and more == [first, first]
