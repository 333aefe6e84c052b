"""What only a GPU can show: strategies that need one, kernels against the library's attention, memory as predicted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.strategy_jobs import OPTIONS, difference, job, losses, run_jobs
from bigqa.bench.cases import rows_on
from bigqa.bench.predict import Predictor
from bigqa.bench.report import Case
from bigqa.bench.sweep import run_case
from bigqa.machine.contexts import context_of
from bigqa.machine.hardware import detect
from bigqa.speed.calibration import measure_cpu
from bigqa.speed.card import measure_gpu
from bigqa.strategy import STRATEGIES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
REFERENCE = "plain-fp32"
ALONE = [name for name, row in STRATEGIES.items() if row.device == "cuda" and not row.needs_deepspeed]
CHANGES_LITTLE = [
    name for name in ALONE if STRATEGIES[name].tier < 2 and not STRATEGIES[name].release and name != "batch-1"
]
BAND = 0.02
WORST_ALLOCATED, WORST_RESERVED = 0.01, 0.05


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each strategy that one GPU can run, 20 steps on the sample, and plain fp16 beside them."""
    folder = tmp_path_factory.mktemp("gpu")
    options = OPTIONS | {"device": "cuda", "max_steps": 20}
    jobs = [job(folder / name, name, options, device="cuda") for name in ALONE]
    jobs.append(job(folder / "fp16", "plain", options, device="cuda", precision="fp16"))
    run_jobs(folder, jobs)
    return folder


@pytest.mark.numbers
@pytest.mark.parametrize("name", [*CHANGES_LITTLE, "fp16"])
def test_the_loss_curve_is_that_of_plain_fp32(trained: Path, name: str) -> None:
    assert difference(losses(trained / name), losses(trained / REFERENCE)) < BAND


@pytest.mark.numbers
@pytest.mark.parametrize("name", [name for name in ALONE if STRATEGIES[name].adapters != "none"])
def test_adapters_learn(trained: Path, name: str) -> None:
    found = losses(trained / name)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def large(name: str, micro_batch: int, **changes: Any) -> Case:
    axes = rows_on("cuda", "bf16", (name,))[name]
    fields = {"model": "enliple-large-v1", "strategy": name, "axes": axes, "seq_len": 384, "micro_batch": micro_batch}
    return Case.model_validate(fields | {"global_batch": 2 * micro_batch} | changes)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    hardware = detect()
    cpu = measure_cpu(0.2)
    rates = replace(measure_gpu(torch.device("cuda")), adam_per_s=cpu.adam_per_s)
    return Predictor(hardware, hardware.gpus[0], {"cpu": cpu, "cuda": rates})


@pytest.mark.parametrize("name", ["plain", "selective", "recompute", "8bit", "stochastic", "8bit-recompute"])
def test_memory_is_as_predicted(predictor: Predictor, name: str) -> None:
    case = large(name, 8)
    predicted, found = predictor.of(case).memory, run_case(case, 200)
    assert found.ok and found.peak_allocated_bytes and found.peak_reserved_bytes
    assert predicted.allocated_bytes == pytest.approx(found.peak_allocated_bytes, rel=WORST_ALLOCATED)
    assert predicted.reserved_bytes == pytest.approx(found.peak_reserved_bytes, rel=WORST_RESERVED)


def test_a_run_capped_at_its_prediction_finishes_and_well_below_fails(predictor: Predictor) -> None:
    case = large("recompute", 8)
    need = predictor.of(case).memory.device_bytes
    assert run_case(case.model_copy(update={"cap_bytes": int(1.02 * need)}), 200).ok
    context = context_of(torch.cuda.get_device_name())
    less = context + int(0.8 * (need - context))
    assert run_case(case.model_copy(update={"cap_bytes": less}), 200).outcome == "out of memory"
