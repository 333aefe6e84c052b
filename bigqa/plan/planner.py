"""From what is wanted and what is there to a plan. In: a model, a workload, hardware. Out: candidates, the best first.

The plan is the fastest of the lowest tier that fits. The predictor runs the trainer's own step, so a strategy is
predicted from the moment that it can run.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from bigqa.engine.build import not_together
from bigqa.errors import BigqaError
from bigqa.machine import heap
from bigqa.machine.gpus import GPUS, GpuModel
from bigqa.machine.hardware import Gpu
from bigqa.memory.estimate import Estimator, MemoryEstimate
from bigqa.memory.forks import in_forks
from bigqa.plan.candidates import HEADROOM, HOST_HEADROOM, Candidate, Machine, Verdict, Workload, rank
from bigqa.speed.calibration import QUICK_S, measure_cpu
from bigqa.speed.throughput import Rates, Shape, gpu_rates, speed_of
from bigqa.strategy import STRATEGIES, Precision, Strategy, can_be_traced, missing_package, with_low_precision
from bigqa.tasks.qa import QuestionAnswering
from bigqa.units import format_bytes

UNSURE = 0.05
"""Nearness to a limit, as a share of it, at which the whole model is traced."""


def estimator_for(config: Any) -> Estimator:
    """Return the estimator of a model's configuration. Raises: BigqaError where the model has no QA head."""
    from transformers import AutoModelForQuestionAnswering

    if type(config) not in AutoModelForQuestionAnswering._model_mapping:
        raise BigqaError(f"models of type {config.model_type} have no question-answering head")
    task = QuestionAnswering(0, getattr(config, "type_vocab_size", 0) > 1)

    def make_model(changed: Any) -> torch.nn.Module:
        model: torch.nn.Module = AutoModelForQuestionAnswering.from_config(changed, dtype=torch.float32)
        return model

    return Estimator(config, make_model, task)


def _rates_of_the_like(gpu: Gpu) -> Rates:
    def unlikeness(card: GpuModel) -> tuple[int, float]:
        return abs(card.capability[0] - gpu.capability[0]), abs(card.memory_bytes / gpu.total_bytes - 1)

    like = min(GPUS, key=unlikeness)
    return replace(
        gpu_rates(like), source=f"no datasheet of {gpu.name}; that of {like.name}, the most like it", error=0.5
    )


class Planner:
    """Judges strategies for one model, workload and machine."""

    def __init__(
        self,
        estimator: Estimator,
        workload: Workload,
        machine: Machine,
        precision: Precision | None = None,
        *,
        on_all_cores: bool = False,
    ) -> None:
        self.estimator = estimator
        self.workload = workload
        self.machine = machine
        self.precision = precision
        """What low precision is to be; none: what the device is best at."""
        self.on_all_cores = on_all_cores
        """Judge in forks: for a process that has not touched a GPU."""
        self._cpu_rates: Rates | None = None

    def candidates(self, names: list[str] | None = None, tier: int = 2) -> list[Candidate]:
        """Return every named strategy that the machine could have, judged; the best first."""
        rows = {name: row for name, row in STRATEGIES.items() if names is None or name in names}
        rows = {name: row for name, row in rows.items() if self._concerns(row) and row.tier <= tier}
        if self.on_all_cores:
            return rank(self._judged_in_forks(rows))
        return rank([self.judge(name, row) for name, row in rows.items()])

    def _judged_in_forks(self, rows: dict[str, Strategy]) -> list[Candidate]:
        """Judge on all cores; rows that share traces go to one process, the most rows first."""
        if any(row.device == "cpu" for row in rows.values()):
            self.rates("cpu")  # measured once, before all cores are busy
        self.estimator.prepare()
        groups: dict[Any, list[str]] = {}
        for name, row in rows.items():
            strategy = with_low_precision(row, self._low_precision(row))
            groups.setdefault(self.estimator.shared_by(strategy), []).append(name)
        ordered = sorted(groups.values(), key=len, reverse=True)
        judged = in_forks(lambda names: [self.judge(name, rows[name]) for name in names], ordered)
        return [candidate for group in judged for candidate in group]

    def need(self, strategy: Strategy, micro_batch: int, seq_len: int, world_size: int) -> MemoryEstimate:
        """Return what one process of a strategy needs."""
        accum = -(-self.workload.global_batch // (micro_batch * world_size))
        return self._memory(strategy, micro_batch, seq_len, accumulating=accum > 1)

    def shortfall(self, strategy: Strategy, memory: MemoryEstimate) -> str | None:
        """Say what a strategy lacks on this machine, or nothing where it fits."""
        verdict, reason = self._verdict(strategy, memory)
        if verdict != "too large":
            return None
        needs, has = {
            "GPU memory": (memory.device_bytes, self._limit(strategy)),
            "host memory": (memory.host_bytes * self._on_a_machine(strategy), self.machine.host_bytes),
            "disk space": (memory.disk_bytes, self.machine.disk_free_bytes or 0),
        }[reason]
        return f"this strategy needs {format_bytes(needs)} of {reason}, and {format_bytes(has)} are free"

    def judge(self, name: str, row: Strategy) -> Candidate:
        """Find the micro-batch at which a strategy fits and is fastest, and how fast it is then."""
        strategy = with_low_precision(row, self._low_precision(row))
        impossible = self._impossible(strategy)
        seq_len = min(strategy.seq_len or self.workload.seq_len, self.workload.seq_len)
        tried = list(self._micro_batches(strategy))
        if impossible:
            return self._candidate(name, strategy, tried[-1], seq_len, "not possible", impossible)
        best = None
        for micro_batch in tried:
            found = self._candidate(name, strategy, micro_batch, seq_len)
            if found.fits and (best is None or found.samples_per_s > best.samples_per_s):
                best = found
            # The more a GPU has to do at once, the faster. On a CPU a smaller one may leave so much memory that freed
            # blocks are kept. That costs traces, so it is not looked for where the CPU is only what is left.
            if best and self.machine.gpu:
                break
        return best or found

    def _candidate(
        self,
        name: str,
        strategy: Strategy,
        micro_batch: int,
        seq_len: int,
        verdict: Verdict | None = None,
        reason: str = "",
    ) -> Candidate:
        world_size = self._processes(strategy)
        accum = -(-self.workload.global_batch // (micro_batch * world_size))
        memory, speed, rates = None, 0.0, None
        if verdict is None:
            memory = self._memory(strategy, micro_batch, seq_len, accumulating=accum > 1)
            rates = self.rates(strategy.device)
            speed = self._speed(strategy, memory, micro_batch, seq_len, accum)
            verdict, reason = self._verdict(strategy, memory)
        windows = self.workload.num_windows * self.workload.epochs
        return Candidate(
            name=name,
            strategy=strategy,
            tier=strategy.tier,
            micro_batch=micro_batch,
            grad_accum=accum,
            seq_len=seq_len,
            memory=memory,
            limit_bytes=self._limit(strategy),
            windows_per_step=micro_batch * accum * world_size,
            samples_per_s=speed,
            run_s=windows / speed if speed else 0.0,
            speed_source=rates.source if rates else "",
            speed_error=rates.error if rates else 0.0,
            verdict=verdict,
            reason=reason,
        )

    def _memory(self, strategy: Strategy, micro_batch: int, seq_len: int, *, accumulating: bool) -> MemoryEstimate:
        def estimate(*, whole: bool) -> MemoryEstimate:
            return self.estimator.estimate(
                strategy,
                micro_batch,
                seq_len,
                accumulating=accumulating,
                world_size=self._processes(strategy),
                capability=self.machine.gpu.capability if self.machine.gpu else (8, 0),
                whole=whole,
            )

        found = estimate(whole=False)
        # Fragmentation is known to a few percent from a part of the layers. Where that decides, all are traced.
        near = abs(found.device_bytes / self._limit(strategy) - 1 + HEADROOM) < UNSURE
        return estimate(whole=True) if strategy.device == "cuda" and near else found

    def _verdict(self, strategy: Strategy, memory: MemoryEstimate) -> tuple[Verdict, str]:
        host_limit = int(self.machine.host_bytes * (1 - HOST_HEADROOM))
        if strategy.device == "cuda" and memory.device_bytes > self._limit(strategy) * (1 - HEADROOM):
            return "too large", "GPU memory"
        if memory.host_bytes * self._on_a_machine(strategy) > host_limit:
            return "too large", "host memory"
        disk_free = self.machine.disk_free_bytes
        if memory.disk_bytes and disk_free is not None and memory.disk_bytes > disk_free:
            return "too large", "disk space"
        return "fits", ""

    def _speed(self, strategy: Strategy, memory: MemoryEstimate, micro_batch: int, seq_len: int, accum: int) -> float:
        shape = Shape(
            micro_batch=micro_batch,
            seq_len=seq_len,
            num_micro_batches=accum,
            num_parameters=self.estimator.num_parameters,
            world_size=self._processes(strategy),
            host_cores=self.machine.host_cores,
            keeps_memory=heap.plenty(memory.host_bytes, self.machine.host_bytes),
        )
        work = self.estimator.footprint(strategy, micro_batch, seq_len, accumulating=accum > 1)
        return speed_of(work, strategy, self.rates(strategy.device), shape).samples_per_s

    def rates(self, device: str) -> Rates:
        """Return what a device reaches; a card without measurement and datasheet: what the most like it does."""
        gpu = self.machine.gpu
        if device == "cpu":
            if self._cpu_rates is None:
                self._cpu_rates = self.machine.rates.get("cpu") or measure_cpu(QUICK_S)
            return self._cpu_rates
        assert gpu is not None
        found = self.machine.rates.get(gpu.name) if gpu.is_here else None
        found = found or (gpu_rates(gpu.model) if gpu.model else _rates_of_the_like(gpu))
        disk = self.machine.disk_bytes_per_s
        return replace(found, disk_bytes_per_s=disk) if disk else found

    def _micro_batches(self, strategy: Strategy) -> Iterator[int]:
        world_size = self._processes(strategy)
        micro_batch = strategy.micro_batch or max(1, -(-self.workload.global_batch // world_size))
        while micro_batch > 1:
            yield micro_batch
            micro_batch = -(-micro_batch // 2)
        yield 1

    def _processes(self, strategy: Strategy) -> int:
        # On a machine with GPUs, what is left to the CPU runs as one process.
        return self.machine.world_size if strategy.device == "cuda" or self.machine.gpu is None else 1

    def _on_a_machine(self, strategy: Strategy) -> int:
        return max(1, self._processes(strategy) // self.machine.num_nodes)

    def _low_precision(self, row: Strategy) -> Precision:
        if self.precision is not None:
            return self.precision
        if row.device == "cpu":
            return "bf16" if self.machine.cpu_bf16 else "fp32"
        gpu = self.machine.gpu
        return "bf16" if gpu is not None and gpu.capability >= (8, 0) else "fp16"

    def _impossible(self, strategy: Strategy) -> str:
        gpu = self.machine.gpu
        if (
            strategy.precision.startswith("bf16")
            and strategy.device == "cuda"
            and gpu is not None
            and gpu.capability < (8, 0)
        ):
            return f"{gpu.name} has no bf16"
        if "nvme" in (strategy.offload_optimizer, strategy.offload_parameters) and not self.machine.nvme:
            return "needs --nvme DIR"
        if strategy.seq_len is not None and strategy.seq_len >= self.workload.seq_len:
            return f"windows are of {self.workload.seq_len} already"
        # A plan for another machine may be made without what it runs on.
        runs_here = gpu is None or gpu.is_here or strategy.device == "cpu"
        missing = missing_package(strategy) if runs_here or not can_be_traced(strategy) else None
        return missing or not_together(strategy, self._processes(strategy)) or ""

    def _concerns(self, row: Strategy) -> bool:
        return row.device == "cpu" or self.machine.gpu is not None

    def _limit(self, strategy: Strategy) -> int:
        if strategy.device == "cuda" and self.machine.gpu is not None:
            return self.machine.gpu.free_bytes
        return self.machine.host_bytes
