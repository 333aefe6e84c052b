"""Runs that are streamed from then on, and streamed runs that go on otherwise: every pair of strategies."""

import functools
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from null_gpu import on_null_gpu
from streaming import SMALL, learned, off, parts_of
from torch import Tensor
from transformers import BertConfig

from benchmarks.strategy_jobs import OPTIONS, ZERO, difference, job, losses, run_jobs
from bigqa.bench.cases import rows_on
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.checkpoint import Checkpoint
from bigqa.engine.optim.moments import BLOCK
from bigqa.engine.optim.update import State
from bigqa.engine.processes import Processes
from bigqa.strategy import STRATEGIES, Strategy

pytest.importorskip("bitsandbytes")
ROWS = {
    name: row.model_copy(update={"micro_batch": None, "seq_len": None})
    for name, row in (rows_on("cpu", "bf16", has_disk=True) | rows_on("cpu", "bf16", ("stream", "stream-8bit"))).items()
    if row.adapters == "none" and row.seq_len is None and name != "batch-1"
} | {"offload-activations": STRATEGIES["offload-activations"].model_copy(update={"device": "cpu"})}
"""Of a CPU, in one process and without DeepSpeed. Adapters have other weights, and shorter windows the same update."""
STREAMED = [name for name, row in ROWS.items() if row.stream]
PAIRS = [pair for pair in product(ROWS, ROWS) if pair[0] != pair[1] and set(pair) & set(STREAMED)]
SAMPLE = {
    ("stream", "cpu-8bit"), ("cpu-fp32", "stream-8bit"), ("release-recompute", "stream-disk"),
    ("stream-disk-8bit", "cpu"),
}  # fmt: skip
BAND, ROUNDED_BAND = 0.01, 0.05
"""Largest relative difference of a loss from that of the run that was saved; where a row rounds or clips otherwise."""
COARSE = 0.02
"""Of the largest value of a block: as far as 8 bits may be off."""
SAVED, STEPS = 2, 4
Unbroken = Callable[[str], tuple[Checkpoint, Tensor]]


def config_of() -> BertConfig:
    """Return a model with weights that are large enough for 8-bit states."""
    return BertConfig(**SMALL | {"hidden_size": 64}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes("cpu")


@pytest.fixture(scope="module")
def unbroken(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Of a row: its checkpoint after half of its steps, and the losses of the others."""
    folder = tmp_path_factory.mktemp("rows")

    @functools.cache
    def run(name: str) -> tuple[Checkpoint, Tensor]:
        parts = parts_of(config_of(), ROWS[name], processes, nvme=folder / "disk")
        learned(parts, config_of(), 0, SAVED, packed=True)
        checkpoint.save(folder / name, SAVED, parts.update.state(), {})
        kept = checkpoint.load_newest(folder / name, pytest.fail)
        assert kept is not None
        return kept, learned(parts, config_of(), SAVED, STEPS, packed=True)[:, 0]

    return run


@pytest.mark.parametrize(
    ("first", "then"), [pytest.param(*pair, marks=() if pair in SAMPLE else pytest.mark.slow) for pair in PAIRS]
)
def test_a_run_goes_on_where_the_other_was(
    first: str, then: str, unbroken: Unbroken, processes: Processes, tmp_path: Path
) -> None:
    kept, expected = unbroken(first)
    parts = parts_of(config_of(), ROWS[then], processes, nvme=tmp_path)
    checkpoint.restore(kept, parts.update)
    assert_taken(parts.update.state(), kept.state, ROWS[then])
    found = learned(parts, config_of(), SAVED, STEPS, packed=True)[:, 0]
    exact = all(ROWS[name].tier == 0 for name in (first, then))
    assert off(found, expected) < (BAND if exact else ROUNDED_BAND)


def assert_taken(found: State, kept: State, row: Strategy) -> None:
    """What a row holds of a state is that state, as nearly as it keeps such things."""
    assert found.weights.keys() == kept.weights.keys() and found.moments.keys() == kept.moments.keys()
    low = row.precision == "bf16-sr"
    for name, value in kept.weights.items():
        assert torch.equal(found.weights[name], value.bfloat16().float() if low else value), name
    for name, value in kept.moments.items():
        if name not in found.scales:
            assert torch.equal(found.moments[name], value.bfloat16().float() if low else value), name
        elif name in kept.scales:
            assert torch.equal(found.moments[name], value), name
        else:
            most = value.reshape(-1, BLOCK).abs().amax(1, keepdim=True)
            assert bool(((found.moments[name] - value).reshape(-1, BLOCK).abs() <= COARSE * most).all()), name
    assert bool(found.scales) == (row.optimizer != "adamw")


def test_pairs_are_those_of_every_row_of_a_cpu() -> None:
    assert set(STREAMED) == {name for name, row in STRATEGIES.items() if row.stream}
    assert {"cpu", "cpu-fp32", "selective", "cpu-least", "stochastic", "release-recompute"} <= set(ROWS)
    assert set(PAIRS) >= SAMPLE and len(PAIRS) == len(STREAMED) * (2 * len(ROWS) - len(STREAMED) - 1)


@pytest.mark.slow
def test_runs_go_on_from_deepspeeds_states_and_into_them(tmp_path: Path) -> None:
    """With the trainer itself. ZeRO's stage 3 leaves a linear layer of its own, which rounds otherwise."""
    pytest.importorskip("deepspeed")
    options = OPTIONS | {"max_steps": STEPS, "save_every": SAVED}
    jobs = [job(tmp_path / name, name, options) for name in (*STREAMED, *ZERO)]
    pairs = [*product(STREAMED, ZERO), *product(ZERO, STREAMED)]
    jobs += [job(tmp_path / f"{a}-{b}", b, options, resume=tmp_path / a) for a, b in pairs]
    run_jobs(tmp_path, jobs)
    over: dict[Any, float] = {}
    for first, then in pairs:
        found, expected = losses(tmp_path / f"{first}-{then}"), losses(tmp_path / first)
        assert found[:SAVED] == expected[:SAVED]
        exact = all(STRATEGIES[name].tier == 0 for name in (first, then))
        distance = difference(found, expected)
        if distance >= (BAND if exact else ROUNDED_BAND):
            over[first, then] = distance
    assert len(pairs) == 2 * len(STREAMED) * len(ZERO) and over == {}


ON_A_GPU = """
import gc, json, sys, tempfile
from itertools import product
from pathlib import Path
import torch
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.processes import Processes
processes, found, kept = Processes("cuda"), {}, {}
rows = rows_on("cuda", "bf16", has_disk=True)
def training_of(name):
    axes = rows[name].model_copy(update={"micro_batch": None, "seq_len": None})
    case = Case(model="tiny", strategy=name, axes=axes, seq_len=64, micro_batch=1, global_batch=2, steps=1)
    return worker.training_of(case, worker.settings_of(case, Path(tempfile.mkdtemp())), processes, Silent())
def let_go(training):
    training.parts.update.finish()
    training.parts.let_go()
    processes.accelerator.free_memory()
    gc.collect()
names = [name for name, row in rows.items() if row.adapters == "none" and name not in SKIPPED]
for name in names:
    training = training_of(name)
    fit(training)
    kept[name] = Path(tempfile.mkdtemp())
    checkpoint.save(kept[name], 2, training.parts.update.state(), {})
    let_go(training)
    del training
for first, then in product(names, names):
    if first != then and (rows[first].stream or rows[then].stream):
        training = training_of(then)
        checkpoint.restore(checkpoint.load_newest(kept[first], sys.exit), training.parts.update)
        fit(training)
        found[f"{first} {then}"] = training.parts.update.completed
        let_go(training)
        del training
print(json.dumps(found))
"""


@pytest.mark.nullgpu
@pytest.mark.slow
def test_on_a_gpu_every_row_is_gone_on_with_streamed_and_the_other_way_round() -> None:
    """That nothing fails: there is nothing in the weights."""
    skipped = ["zero3-nvme"]  # DeepSpeed compiles its disk operations, where there is a libaio
    found = on_null_gpu(ON_A_GPU.replace("SKIPPED", repr(skipped)))
    others = [
        name for name, row in STRATEGIES.items()
        if row.device == "cuda" and row.adapters == "none" and not row.stream and name not in skipped
    ]  # fmt: skip
    assert {tuple(pair.split()) for pair in found} >= {*product(STREAMED, others), *product(others, STREAMED)}
    assert set(found.values()) == {2}
