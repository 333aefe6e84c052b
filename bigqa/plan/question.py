"""What fits, how fast, what is given up: `bigqa probe`. In: what a person asks. Out: a `Probe`, and a plan's files.

No weights are made and nothing is run: the planner traces the trainer's own step without data.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigqa.engine.build import not_together
from bigqa.errors import UsageError
from bigqa.machine.gpus import GPUS, GpuModel
from bigqa.machine.hardware import Gpu, Hardware, capped, detect, planned_gpu
from bigqa.memory.estimate import Estimator
from bigqa.memory.timeline import Timeline
from bigqa.models.sources import check_lengths, load_config, load_tokenizer, resolve
from bigqa.plan.candidates import HEADROOM, Candidate, Workload, choose, machine_for
from bigqa.plan.planner import Planner, estimator_for
from bigqa.speed.calibration import calibrate
from bigqa.strategy import STRATEGIES, Strategy, can_be_traced, with_low_precision
from bigqa.units import parse_bytes

SCHEMA = 1
PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_gpu_bytes", "peak_host_bytes", "pinned_bytes",
         "disk_bytes", "breakdown", "peak_phase", "largest_tensors")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a person asks of `bigqa probe`."""

    model: str
    task: Literal["korquad1", "korquad2"] = "korquad1"
    tokenizer: str | None = None
    seq_len: int | None = None
    global_batch: int | None = None
    gpu: str = "auto"
    gpu_memory: str | None = None
    gpus: int | None = None
    nodes: int = 1
    host_memory: str | None = None
    nvme: Path | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    strategy: str | None = None
    tier: int = 2
    train_file: Path | None = None


@dataclass(frozen=True)
class Probe:
    """What was found. `candidates`: the best first."""

    question: Question
    hardware: Hardware
    gpu: Gpu | None
    num_gpus: int
    workload: Workload
    candidates: list[Candidate]
    chosen: Candidate | None
    estimator: Estimator
    host_bytes: int
    """Of host memory, as planned for."""

    @property
    def num_parameters(self) -> int:
        """Parameters of the model."""
        return self.estimator.num_parameters

    @property
    def closest(self) -> Candidate | None:
        """Where nothing fits: what is short of its limit by the smallest factor."""
        short = [c for c in self.candidates if c.memory is not None and c.verdict == "too large"]
        return min(short, key=lambda c: c.peak_bytes / max(1, c.limit_bytes), default=None)

    def timeline(self, candidate: Candidate) -> Timeline:
        """Return the memory of one step of a candidate over time."""
        return self.estimator.timeline(
            candidate.strategy, candidate.micro_batch, candidate.seq_len, accumulating=candidate.grad_accum > 1
        )

    @property
    def next_best(self) -> Candidate | None:
        """The next plan that fits, were the chosen one not there."""
        return choose([c for c in self.candidates if c is not self.chosen])


@dataclass(frozen=True)
class Need:
    """The least GPU memory that a strategy needs. Bytes, as NVML shows them."""

    name: str
    tier: int
    least_bytes: int
    """At a micro-batch of 1."""
    published_bytes: int
    """At the published batch in one micro-batch."""
    cards: tuple[str, ...]
    """Of the table, those that have the least."""


def probe(question: Question) -> Probe:
    """Judge every strategy on this machine, or on the one that the question names."""
    if question.strategy is not None and question.strategy not in STRATEGIES:
        raise UsageError(f"no strategy {question.strategy}; choose one of {', '.join(STRATEGIES)}")
    config, workload = _config_and_workload(question)
    hardware = detect(question.nvme)
    gpu, count = _gpus(question, hardware)
    machine = machine_for(
        hardware,
        gpu,
        host_bytes=_size(question.host_memory, "--host-memory"),
        num_gpus=count,
        num_nodes=question.nodes,
        nvme=question.nvme is not None,
    )
    precision = None if question.precision == "auto" else question.precision
    names = None if question.strategy is None else [question.strategy]
    estimator = estimator_for(config)
    planner = Planner(estimator, workload, machine, precision, on_all_cores=True)
    candidates = planner.candidates(names, question.tier)
    return Probe(
        question, hardware, gpu, count, workload, candidates, choose(candidates), estimator, machine.host_bytes
    )


def calibration_lines(nvme: Path | None = None) -> Iterator[str]:
    """Measure this machine and keep it for every later probe; say what was found, a line a device."""
    hardware = detect(nvme)
    yield "measuring this machine"
    for name, rates in calibrate(hardware, nvme).items():
        figures = f"products {rates.low_flops_per_s / 1e9:,.0f} and in fp32 {rates.fp32_flops_per_s / 1e9:,.0f} GFLOP/s"
        memory = f"memory {rates.bytes_per_s / 1e9:.1f} GB/s"
        adam = f", AdamW {rates.adam_per_s / 1e6:,.0f} million parameters/s" if rates.adam_per_s else ""
        yield f"{'CPU' if name == 'cpu' else name}: {figures}, {memory}{adam}"


def need(question: Question) -> list[Need]:
    """Return the least GPU memory for each strategy on one GPU."""
    config, workload = _config_and_workload(question)
    estimator = estimator_for(config)
    rows = {
        name: row
        for name, row in STRATEGIES.items()
        if row.device == "cuda" and (row.seq_len or 0) < workload.seq_len and can_be_traced(row)
    }
    estimator.trace_ahead(
        (row, row.seq_len or workload.seq_len, accumulating) for row in rows.values() for accumulating in (True, False)
    )
    found = []
    for name, strategy in rows.items():
        seq_len = strategy.seq_len or workload.seq_len
        least, published = (
            _device_bytes(estimator, name, size, seq_len, workload.global_batch) for size in (1, workload.global_batch)
        )
        cards = (card.name for card in GPUS if card.memory_bytes * (1 - HEADROOM) >= least and _can_run(card, strategy))
        found.append(Need(name, strategy.tier, least, published, tuple(cards)))
    return sorted(found, key=lambda row: (row.tier, row.least_bytes))


def _can_run(card: GpuModel, row: Strategy) -> bool:
    """Whether a card has the precision of a row, and the row goes with what takes its place on older ones."""
    if row.precision == "bf16-sr":
        return card.has_bf16
    return not_together(with_low_precision(row, "bf16" if card.has_bf16 else "fp16")) is None


def as_json(found: Probe) -> str:
    """Return everything that was found as one JSON object."""
    value = {
        "schema": SCHEMA,
        "hardware": found.hardware.model_dump(mode="json")
        | {"gpu": found.gpu.model_dump(mode="json") if found.gpu else None, "num_gpus": found.num_gpus},
        "model": {"name": found.question.model, "parameters": found.num_parameters},
        "workload": found.workload.model_dump(mode="json"),
        "candidates": [_as_row(candidate) for candidate in found.candidates],
        "choice": found.chosen.name if found.chosen else None,
    }
    return json.dumps(value, ensure_ascii=False)


def _as_row(candidate: Candidate) -> dict[str, Any]:
    memory = candidate.memory
    peaks = {
        "peak_allocated_bytes": memory.allocated_bytes,
        "peak_reserved_bytes": memory.reserved_bytes,
        "peak_gpu_bytes": memory.device_bytes,
        "peak_host_bytes": memory.host_bytes,
        "pinned_bytes": memory.pinned_bytes,
        "disk_bytes": memory.disk_bytes,
        "breakdown": memory.by_category,
        "peak_phase": memory.phase,
        "largest_tensors": [{"made_by": name, "bytes": size} for name, size in memory.largest],
    } if memory else dict.fromkeys(PEAKS)  # fmt: skip
    fields = ("tier", "micro_batch", "grad_accum", "seq_len", "fits", "verdict", "reason", "limit_bytes")
    speeds = ("samples_per_s", "step_s", "run_s", "speed_source", "speed_error")
    row = {"strategy": candidate.name, "axes": candidate.strategy.model_dump(mode="json")}
    return row | {name: getattr(candidate, name) for name in (*fields, *speeds)} | peaks


def _config_and_workload(question: Question) -> tuple[Any, Workload]:
    source = resolve(question.model, tokenizer=question.tokenizer)
    config = load_config(source)
    recipe = source.recipe.model_dump() if source.recipe else {}
    asked = {"seq_len": question.seq_len, "global_batch": question.global_batch}
    fields = {name: recipe[name] for name in ("seq_len", "global_batch", "epochs") if name in recipe}
    workload = Workload.model_validate(fields | {name: value for name, value in asked.items() if value is not None})
    check_lengths(config, workload.seq_len)
    if question.train_file is not None:
        workload = _with_data(workload, source, question.train_file)
    elif question.task != "korquad1":
        raise UsageError(f"--task {question.task} wants --train-file: its windows are known when they are counted")
    return config, workload


def _with_data(workload: Workload, source: Any, file: Path) -> Workload:
    """Count the windows of a file, and the answers that shorter ones lose."""
    from bigqa.tasks.inspection import inspect_file
    from bigqa.tasks.windows import Lengths

    found = inspect_file(file, load_tokenizer(source), Lengths(seq_len=workload.seq_len))
    at = {int(name[4:]): value for name, value in found.items() if name.startswith("seq_")}
    lost = {length: value["answers_out_of_reach_share"] for length, value in at.items()}
    return workload.model_copy(update={"num_windows": at[workload.seq_len]["windows"], "out_of_reach": lost})


def _gpus(question: Question, hardware: Hardware) -> tuple[Gpu | None, int]:
    memory = _size(question.gpu_memory, "--gpu-memory")
    if question.gpu == "none":
        _refuse_several(question)
        return None, 1
    if question.gpu != "auto":
        return planned_gpu(question.gpu, memory), question.gpus or 1
    if not hardware.gpus:
        if memory is not None:
            raise UsageError("--gpu-memory without a GPU here: name a card with --gpu NAME")
        _refuse_several(question)
        return None, 1
    # Processes of one run are alike, so the GPU with the least free memory decides.
    gpu = min(hardware.gpus, key=lambda card: card.free_bytes)
    return (capped(gpu, memory) if memory else gpu), question.gpus or len(hardware.gpus)


def _refuse_several(question: Question) -> None:
    if question.gpus is not None or question.nodes > 1:
        raise UsageError(
            "--gpus and --nodes are for GPUs: name a card with --gpu NAME; a CPU's plan is for one process"
        )


def _size(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _device_bytes(estimator: Estimator, name: str, micro_batch: int, seq_len: int, global_batch: int) -> int:
    strategy = STRATEGIES[name]
    found = estimator.estimate(strategy, micro_batch, seq_len, accumulating=micro_batch < global_batch)
    return found.device_bytes
