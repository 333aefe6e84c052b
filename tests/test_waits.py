"""The host launches ahead of the GPU: no strategy makes it wait within a step, but where something must be known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from null_gpu import on_null_gpu
from torch import nn

from bigqa.engine.loop.meter import SpeedMeter
from bigqa.engine.loop.reader import StepReader
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.optim.optimizers import make_optimizer
from bigqa.engine.sharding import ShardedUpdate
from bigqa.engine.stream.link import _OnStreams
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


def test_who_waits_for_the_gpu_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's own way is to ask again and again: a core, of two perhaps, that steps on the host want."""
    made: list[dict[str, bool]] = []
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: made.append(options) or event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    device = torch.device("cuda", 0)
    StepReader(device, Silent(), SpeedMeter())
    _OnStreams(device).mark()()
    assert [options.get("blocking") for options in made] == [True, True]


def test_a_step_of_zero_does_not_ask_for_its_norm() -> None:
    """Whether a number on the device is zero is known when all that was launched before is done."""

    class OnDevice(torch.Tensor):
        def __bool__(self) -> bool:
            raise AssertionError("the host would wait")

    norms = [torch.tensor(3.0).as_subclass(OnDevice), None]
    engine = SimpleNamespace(step=lambda: None, get_global_grad_norm=lambda: norms.pop(0))
    update: Any = ShardedUpdate.__new__(ShardedUpdate)
    update.engine, update.scaler, update.completed = engine, None, 0
    assert [float(update.step()), float(update.step())] == [3.0, 0.0]


def test_numbers_of_a_step_come_where_nothing_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends them then waits for them; asked for again and again, a driver that refuses would cost each step."""
    asked: list[bool] = []
    empty = torch.empty

    def without_pinned(*sizes: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: operation not supported")
        return empty(*sizes, **options)

    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None, elapsed_time=lambda _: 1000.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch, "empty", without_pinned)
    reader = StepReader(torch.device("cuda", 0), Silent(), SpeedMeter())
    monkeypatch.setattr(reader, "_memory", SimpleNamespace(now_bytes=lambda: 1, peak_bytes=lambda: 2))
    for loss in (4.0, 3.0):
        reader.launched({"windows": 1, "tokens": 1}, torch.tensor([loss, 0.0, 1.0]))
    reader.read()
    assert reader.last_loss == 3.0 and asked == [True, False, False]


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


OF_TASKS = """
import json, warnings, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig
from bigqa.engine.attention import kernels
from bigqa.tasks.classify.task import Classification
from bigqa.tasks.lm.task import LanguageModel
from bigqa.tasks.score.task import Regression
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
def made(config, kind):
    model = kind.from_config(config)
    kernels.use(model)
    return model.to(torch.bfloat16).to("cuda")
rows = [{"input_ids": [5] * length, "token_type_ids": [0] * length, "answer": [1] * length} for length in (9, 4)]
found, sequences = {}, AutoModelForSequenceClassification
for name, task, config, kind, label in (
    ("classify", Classification(0, True, weights=[1.0, 3.0], smoothing=0.1), BertConfig(**sizes), sequences, 1),
    ("score", Regression(0, True), BertConfig(num_labels=1, **sizes), sequences, 0.5),
    ("lm", LanguageModel(0, False), LlamaConfig(**sizes), AutoModelForCausalLM, 1),
):
    model = made(config, kind)
    labelled = [row | {"label": label} for row in rows]
    for made_up in (task.collate(labelled), task.pack(labelled)):
        batch = {key: one.cuda() for key, one in made_up.items()}
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            task.loss_sum(model, batch).backward()
        torch.cuda.set_sync_debug_mode(0)
    found[name] = sorted({f"{w.filename}:{w.lineno}" for w in told if "synchroniz" in str(w.message)})
print(json.dumps(found))
"""


@pytest.mark.nullgpu
def test_no_loss_waits_for_the_gpu() -> None:
    found = on_null_gpu(OF_TASKS)
    assert {name: waits for name, waits in found.items() if waits} == {} and len(found) == 3


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
