"""What comes before the first step and after the last takes no more of a card than steps: it is done on the host."""

from pathlib import Path
from typing import Any

import pytest
import torch
from forked import in_processes
from null_gpu import on_null_gpu
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering

from bigqa.bench.cases import rows_on
from bigqa.engine.build import build
from bigqa.engine.optim import moments
from bigqa.engine.processes import Processes
from bigqa.run import delivery
from bigqa.run.delivery import on_the_host_if_it_must
from bigqa.settings import Settings
from bigqa.strategy import STRATEGIES, Strategy
from bigqa.tasks.qa.task import QuestionAnswering

CUDA = torch.device("cuda", 0)
ROWS = [name for name in rows_on("cuda", "bf16") if not STRATEGIES[name].needs_deepspeed]


class OnCard:
    """A tensor that says it lies on a card, and remembers where it was asked to go."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.moved = values, 0

    def to(self, device: Any) -> torch.Tensor:
        assert str(device) == "cpu"
        self.moved += 1
        return self.values

    def __getattr__(self, name: str) -> Any:
        if name == "dtype":
            return self.values.dtype
        if name == "device":
            return CUDA
        raise AssertionError(f"{name} of a tensor on the card: it would take memory there")


def test_moments_are_made_in_host_memory() -> None:
    pytest.importorskip("bitsandbytes")
    codes, scales, code = (OnCard(one) for one in (torch.tensor([0, 255], dtype=torch.uint8), torch.ones(1) * 3,
                                                   torch.linspace(-1, 1, 256)))  # fmt: skip
    eight_bits: Any = {"state1": codes, "absmax1": scales, "qmap1": code}
    assert moments._in_fp32(eight_bits, "exp_avg", "1").tolist() == [-3.0, 3.0]
    assert (codes.moved, scales.moved, code.moved) == (1, 1, 1)
    low: Any = {"exp_avg": OnCard(torch.ones(2, dtype=torch.bfloat16))}
    assert moments._in_fp32(low, "exp_avg", "1").dtype == torch.float32


class Placed(nn.Linear):
    """Remembers where it was sent."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.sent: list[str] = []

    def to(self, *where: Any, **_: Any) -> "Placed":
        self.sent.append(str(where[0]))
        return self


class Limited:
    """A card of 10**9 bytes, its limits in the order in which they are set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, taken: int) -> None:
        self.limits: list[float] = []
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: taken)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.limits.append)
        monkeypatch.setattr(delivery, "choose_precision", lambda asked, device: "bf16")


@pytest.mark.parametrize(
    ("free", "taken", "room", "tried"),
    [
        (10**9, 10**8, 0.05, ["cuda within 0.1"]),  # what steps took is enough
        (10**9, 10**8, 0.5, ["cuda within 0.1", "cuda within 1.0"]),  # else all that is free
        (10**9, 10**8, 2.0, ["cuda within 0.1", "cuda within 1.0", "cpu"]),
        (10**9, 30, 0.5, ["cuda within 1.0"]),  # steps took less than the model takes: 40 bytes in bf16
        (30, 10**8, 0.05, ["cpu"]),
    ],
)
def test_scoring_takes_what_steps_took_then_what_is_free_then_the_host(
    monkeypatch: pytest.MonkeyPatch, free: int, taken: int, room: float, tried: list[str]
) -> None:
    """`room`: the limit, as a share of the card, from which on it does."""
    card, model, on = Limited(monkeypatch, free, taken), Placed(), []

    def work(device: torch.device) -> str:
        on.append(device.type + (f" within {card.limits[-1]}" if device.type == "cuda" else ""))
        if device.type == "cuda" and card.limits[-1] < room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "answers"

    assert on_the_host_if_it_must(work, model, CUDA, "auto") == "answers"
    assert on == tried and (model.sent[-1:] == ["cpu"]) == ("cpu" in tried or len(tried) > 1)
    assert card.limits[-1:] in ([], [1.0])  # none is left behind


def test_another_error_of_scoring_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Limited(monkeypatch, 10**9, 10**9)

    def work(device: torch.device) -> str:
        raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side"):
        on_the_host_if_it_must(work, Placed(), CUDA, "auto")
    assert card.limits == [1.0, 1.0]


WHOLE = """
import gc, json, tempfile, torch, ctypes
from pathlib import Path
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine import adapters
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.processes import Processes
from bigqa.run.delivery import on_the_host_if_it_must
from bigqa.run.prediction import ready
yes = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(lambda size: 1)
ctypes.CDLL("libcuda.so.1").null_on_read(yes)
found, processes, total = {}, Processes("cuda"), torch.cuda.get_device_properties(0).total_memory
def most():
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
for name in NAMES:
    axes = rows_on("cuda", "bf16", (name,))[name].model_copy(update={"micro_batch": None, "seq_len": None})
    case = Case(model="enliple-small", strategy=name, axes=axes, seq_len=64, micro_batch=1, global_batch=1, steps=1)
    folder = Path(tempfile.mkdtemp())
    peaks = {}
    training = worker.training_of(case, worker.settings_of(case, folder), processes, Silent())
    peaks["place"] = most()
    fit(training)
    peaks["steps"], reserved = most(), torch.cuda.max_memory_reserved()
    checkpoint.save(folder, 2, training.parts.update.state(), {})
    peaks["save"] = most()
    checkpoint.restore(checkpoint.load_newest(folder, print), training.parts.update)
    peaks["load"] = most()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, reserved / total))
    model = training.parts.update.finish()
    adapters.merge(model)
    peaks["finish"] = most()
    def score(device):
        ready(model, device)
        ids = torch.ones(1, 64, dtype=torch.long, device=device)
        with torch.inference_mode():
            return model(input_ids=ids).start_logits.device.type
    where = on_the_host_if_it_must(score, model, processes.device, "auto")
    peaks["score"] = most()
    found[name] = [peaks, where]
    torch.cuda.set_per_process_memory_fraction(1.0)
    del training, model, score
    processes.accelerator.free_memory()  # it keeps every model that it has wrapped
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
print(json.dumps(found))
"""


SAMPLE = ["plain", "qlora-recompute", "8bit"]
"""Masters, adapters beside packed weights, and moments in codes."""


@pytest.mark.nullgpu
@pytest.mark.parametrize(
    "names", [pytest.param(SAMPLE, id="sample"), pytest.param(ROWS, id="all", marks=pytest.mark.slow)]
)
def test_a_run_ends_with_a_model_within_what_its_steps_take(names: list[str]) -> None:
    """Every row without DeepSpeed, at one short window: what does not hang on activations weighs most there."""
    found = on_null_gpu(WHOLE.replace("NAMES", repr(names)))
    assert found.keys() == set(names) and {*SAMPLE, "stochastic-release-recompute"} <= set(ROWS)
    over = {
        f"{name}: {phase}": (peak, peaks["steps"])
        for name, (peaks, _) in found.items()
        for phase, peak in peaks.items()
        if peak > peaks["steps"] and phase != "score"  # which is held to what steps reserved
    }
    assert over == {}, over
    assert found["plain"][1] == "cuda"


def test_zero_3_leaves_nothing_of_its_parts(tmp_path: Path) -> None:
    """Of a parameter that outlives its engine: weights and gradients in low precision were left on the card."""
    pytest.importorskip("deepspeed")

    def work(processes: Processes) -> list[list[int]]:
        config = BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40
        )
        strategy = Strategy(device="cpu", precision="bf16", zero_stage=3)
        settings = Settings(
            model="tiny", train_file=Path("train.json"), out=tmp_path, strategy=strategy, precision="bf16",
            global_batch=1, micro_batch=1, seq_len=16, max_query_length=4, doc_stride=4,
        )  # fmt: skip
        parts = build(BertForQuestionAnswering(config), QuestionAnswering(0, True), settings, processes)
        update: Any = parts.update
        held = [parameter.ds_tensor for parameter in update.module.parameters()]
        held.append(update.engine.optimizer.grad_partitions_flat_buffer)
        sizes = [[one.untyped_storage().nbytes() for one in held]]
        update.finish()
        return [*sizes, [one.untyped_storage().nbytes() for one in held]]

    ((before, after),) = in_processes(work, 1)
    assert min(before) > 0 and max(after) == 0


LEFT = """
import gc, json, tempfile, torch
from pathlib import Path
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.processes import Processes
processes, found = Processes("cuda"), {}
for name in NAMES:
    axes = rows_on("cuda", "bf16", (name,))[name]
    case = Case(model="enliple-small", strategy=name, axes=axes, seq_len=64, micro_batch=1, global_batch=1, steps=1)
    training = worker.training_of(case, worker.settings_of(case, Path(tempfile.mkdtemp())), processes, Silent())
    fit(training)
    before = torch.cuda.memory_allocated()
    training.parts.update.finish()
    training.parts.let_go()
    gc.collect()
    found[name] = [before, torch.cuda.memory_allocated()]
print(json.dumps(found))
"""
WORKSPACES = 20 * 2**20
"""Two of cuBLAS' are the process's own."""


@pytest.mark.nullgpu
def test_deepspeed_gives_the_card_back_before_scoring() -> None:
    found = on_null_gpu(LEFT.replace("NAMES", repr(["zero1", "zero3", "zero2-offload", "zero3-offload"])))
    assert {name: left for name, (_, left) in found.items() if left > WORKSPACES} == {}, found
    assert found["zero1"][0] > 200 * 2**20
