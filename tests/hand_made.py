"""Run reports made by hand: what was said and what happened are the arguments. In: figures. Out: reports and rows."""

import json
from pathlib import Path
from typing import Any

from bigqa.bench.report import Case, Measured, Outcome, Predicted, RunReport
from bigqa.machine.hardware import Cpu, Gpu, Hardware
from bigqa.memory.estimate import MemoryEstimate
from bigqa.speed.throughput import Rates
from bigqa.strategy import STRATEGIES
from bigqa.table.rows import Row
from bigqa.units import GIB

TINY_BERT = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "vocab_size": 100,
}
RATES = Rates(
    low_flops_per_s=2e12,
    fp32_flops_per_s=1e12,
    low_batched_flops_per_s=1e12,
    fp32_batched_flops_per_s=5e11,
    bytes_per_s=1e10,
    link_bytes_per_s=1e10,
    launch_s=1e-6,
    source="made by hand",
    error=0.1,
)
CARD = Gpu(name="Card 24", total_bytes=24 * GIB, free_bytes=24 * GIB, capability=(8, 0))
MACHINE = Hardware(
    gpus=(CARD,),
    cpu=Cpu(name="Processor", cores=2, bf16=True, avx512=True, amx=False),
    host_total_bytes=64 * GIB,
    host_free_bytes=64 * GIB,
    swap_bytes=0,
    shm_bytes=0,
    memlock_bytes=None,
)


def estimate(size_bytes: int) -> MemoryEstimate:
    """Return an estimate whose every peak is of one size."""
    return MemoryEstimate(
        allocated_bytes=size_bytes,
        reserved_bytes=size_bytes,
        device_bytes=size_bytes,
        host_bytes=size_bytes,
        pinned_bytes=0,
        disk_bytes=0,
        phase="step",
        by_category={"weights": size_bytes},
        largest=(),
    )


def report(
    strategy: str = "cpu",
    *,
    said: tuple[float, float] = (2, 10),
    ran: tuple[float, float] | Outcome = (2, 10),
    model: str = "tiny-bert",
    seq_len: int = 64,
    micro_batch: int = 4,
    **of_case: Any,
) -> RunReport:
    """Return a report; `said` and `ran` are (peak in GiB, samples per second), or how the run ended instead."""
    axes = STRATEGIES[strategy]
    if axes.seq_len is not None:
        axes = axes.model_copy(update={"seq_len": seq_len})
    case = Case(
        model=model,
        strategy=strategy,
        axes=axes,
        seq_len=seq_len,
        micro_batch=micro_batch,
        global_batch=4,
        **of_case,
    )
    return RunReport(
        case=case,
        config=TINY_BERT,
        num_parameters=1000,
        measured=measured(ran, axes.device),
        predicted=Predicted(memory=estimate(round(said[0] * GIB)), samples_per_s=said[1]),
        rates=RATES,
        gpu=CARD.name if axes.device == "cuda" else None,
        hardware=MACHINE,
        versions={"bigqa": "0"},
        time="2026-01-01T00:00:00",
    )


def measured(ran: tuple[float, float] | Outcome, device: str) -> Measured:
    """Return a run of three steps, the median as fast as it says; the others are 25% slower and faster."""
    if isinstance(ran, str):
        return Measured(outcome=ran, reason="as the test wants it")
    size_bytes, samples_per_s = round(ran[0] * GIB), ran[1]
    on_gpu = {"peak_allocated_bytes": size_bytes, "peak_reserved_bytes": size_bytes, "peak_gpu_bytes": size_bytes}
    steps = tuple(4 / samples_per_s * factor for factor in (1, 0.8, 4 / 3))
    more = on_gpu if device == "cuda" else {}
    return Measured.model_validate(
        {"outcome": "ok", "step_s": steps, "windows_per_step": 4, "peak_host_bytes": size_bytes} | more
    )


def row(*words: Any, **named: Any) -> Row:
    """Return a row whose prediction made anew is the one of its report."""
    made = report(*words, **named)
    return Row(report=made, predicted=made.predicted, step_flops=10**12)


def write(folder: Path, reports: list[RunReport]) -> None:
    """Write reports as a benchmark does, under names of their own."""
    folder.mkdir(parents=True)
    for number, made in enumerate(reports):
        (folder / f"{number}.json").write_text(json.dumps(made.model_dump(mode="json")), encoding="utf-8")
