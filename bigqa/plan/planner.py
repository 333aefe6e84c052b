"""From what is wanted and what is there to a plan. In: a model, a workload, a machine. Out: candidates, the best first.

The plan is the fastest of the lowest tier that fits. The predictor runs the trainer's own step, so a strategy is
predicted from the moment that it can run.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch

from bigqa.errors import BigqaError
from bigqa.language import put
from bigqa.machine import heap
from bigqa.memory.estimate import Estimator, MemoryEstimate
from bigqa.memory.forks import in_forks
from bigqa.memory.traces import Keep, make_anew
from bigqa.models.sources import auto_class
from bigqa.plan.candidates import Candidate, Workload, rank
from bigqa.plan.kept import Kept, keeps
from bigqa.plan.machine import HEADROOM, Machine
from bigqa.speed.rates import KnownRates
from bigqa.speed.throughput import Shape, speed_of
from bigqa.strategy import STRATEGIES, Precision, Strategy, with_low_precision
from bigqa.tasks.base import TaskKind, Tokens
from bigqa.tasks.registry import DEFAULT, kind_of

UNSURE = 0.05
"""Nearness to a limit, as a share of it, at which the whole model is traced."""


def estimator_for(config: Any, kind: TaskKind[Any] | None = None, keep: Keep = make_anew) -> Estimator:
    """Return the estimator of a model's configuration and a task. Raises: BigqaError where the model lacks its head.

    `keep`: what it does with its traces.
    """
    kind = kind or kind_of(DEFAULT)
    auto = auto_class(config, kind.head)
    task = kind.task(auto._model_mapping[type(config)], kind.options({}), Tokens(0, 0), config)

    def make_model(changed: Any) -> torch.nn.Module:
        # A model has its configuration for its own, and a strategy changes it: the next one's must not find that.
        model: torch.nn.Module = auto.from_config(copy.deepcopy(changed), dtype=torch.float32)
        # A few are made on the CPU wherever a model is: those of `torch.normal`, as DiffLlama's.
        without_data = torch.get_default_device().type == "meta"
        return model.to("meta") if without_data and not all(p.is_meta for p in model.parameters()) else model

    return Estimator(config, make_model, task, keep)


_known: dict[str, Estimator] = {}


def known_estimator(config: Any, kind: TaskKind[Any] | None = None) -> Estimator:
    """As `estimator_for`; one for all who ask of the same model in this process, with the traces made so far.

    Those that a command before this one made are kept, see `plan.kept`.
    """
    kind = kind or kind_of(DEFAULT)
    key = kind.name + config.to_json_string(use_diff=False)
    if key not in _known:
        own = copy.deepcopy(config)
        _known[key] = estimator_for(own, kind, Kept(own, kind) if keeps(kind) else make_anew)
    return _known[key]


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
        self.rates = KnownRates(machine.rates, machine.gpu, machine.disk_bytes_per_s)

    def candidates(self, names: list[str] | None = None, tier: int = 2) -> list[Candidate]:
        """Return every named strategy that the machine could have, judged; the best first."""
        rows = {name: row for name, row in STRATEGIES.items() if names is None or name in names}
        rows = {name: row for name, row in rows.items() if self.machine.concerns(row) and row.tier <= tier}
        judged = self._judged_in_forks(rows) if self.on_all_cores else [self.judge(*item) for item in rows.items()]
        return rank(judged)

    def _judged_in_forks(self, rows: dict[str, Strategy]) -> list[Candidate]:
        """Judge on all cores; rows that share traces go to one process, the most rows first."""
        if any(row.device == "cpu" for row in rows.values()):
            self.rates.of("cpu")  # measured once, before all cores are busy
        self.estimator.prepare()
        groups: dict[Any, list[str]] = {}
        for name, row in rows.items():
            groups.setdefault(self.estimator.shared_by(self._settled(row)), []).append(name)
        ordered = sorted(groups.values(), key=len, reverse=True)
        judged = in_forks(lambda names: [self.judge(name, rows[name]) for name in names], ordered)
        return [candidate for group in judged for candidate in group]

    def judge(self, name: str, row: Strategy) -> Candidate:
        """Find the micro-batch at which a strategy fits and is fastest, and how fast it is then."""
        strategy = self._settled(row)
        seq_len = min(strategy.seq_len or self.workload.seq_len, self.workload.seq_len)
        lacks = self.machine.lacks(strategy, self.workload.seq_len)
        try:
            return self._not_possible(name, strategy, seq_len, lacks) if lacks else self._best(name, strategy, seq_len)
        except BigqaError as error:  # what its model cannot do: the other rows are judged all the same
            return self._not_possible(name, strategy, seq_len, put("{error}", error=error))

    def _not_possible(self, name: str, strategy: Strategy, seq_len: int, reason: str) -> Candidate:
        known = self._known(name, strategy, 1, seq_len)
        return Candidate(**known, memory=None, samples_per_s=0.0, run_s=0.0, verdict="not possible", reason=reason)

    def _best(self, name: str, strategy: Strategy, seq_len: int) -> Candidate:
        """Return the fastest that fits of a strategy's micro-batches, else the smallest. Raises: BigqaError."""
        best = found = None
        for micro_batch in self._micro_batches(strategy):
            found = self._tried(name, strategy, micro_batch, seq_len)
            if found.fits and (best is None or found.samples_per_s > best.samples_per_s):
                best = found
            # The more a GPU has to do at once, the faster. On a CPU a smaller one may leave so much memory that freed
            # blocks are kept. That costs traces, so it is not looked for where the CPU is only what is left.
            if best and self.machine.gpu:
                break
        assert found is not None
        return best or found

    def need(self, strategy: Strategy, micro_batch: int, seq_len: int, world_size: int) -> MemoryEstimate:
        """Return what one process of a strategy needs."""
        accum = -(-self.workload.global_batch // (micro_batch * world_size))
        return self._memory(strategy, micro_batch, seq_len, accum)

    def _settled(self, row: Strategy) -> Strategy:
        return with_low_precision(row, self.precision or self.machine.low_precision(row.device))

    def _micro_batches(self, strategy: Strategy) -> Iterator[int]:
        micro_batch = strategy.micro_batch or -(-self.workload.global_batch // self.machine.processes(strategy))
        while micro_batch > 1:
            yield micro_batch
            micro_batch = -(-micro_batch // 2)
        yield 1

    def _known(self, name: str, strategy: Strategy, micro_batch: int, seq_len: int) -> dict[str, Any]:
        """Return what is known of a candidate before anything is predicted."""
        world_size = self.machine.processes(strategy)
        grad_accum = -(-self.workload.global_batch // (micro_batch * world_size))
        return {
            "name": name,
            "strategy": strategy,
            "tier": strategy.tier,
            "micro_batch": micro_batch,
            "grad_accum": grad_accum,
            "seq_len": seq_len,
            "limit_bytes": self.machine.limit_bytes(strategy),
            "windows_per_step": micro_batch * grad_accum * world_size,
        }

    def _tried(self, name: str, strategy: Strategy, micro_batch: int, seq_len: int) -> Candidate:
        """Judge a strategy at one micro-batch."""
        known = self._known(name, strategy, micro_batch, seq_len)
        accum = known["grad_accum"]
        memory = self._memory(strategy, micro_batch, seq_len, accum)
        verdict, reason = self.machine.verdict(strategy, memory)
        rates = self.rates.of(strategy.device)
        shape = Shape(
            micro_batch=micro_batch,
            seq_len=seq_len,
            num_micro_batches=accum,
            num_parameters=self.estimator.num_parameters,
            world_size=self.machine.processes(strategy),
            host_cores=self.machine.host_cores,
            keeps_memory=heap.plenty(memory.host_bytes, self.machine.host_bytes),
        )
        work = self.estimator.footprint(
            strategy, micro_batch, seq_len, accumulating=accum > 1, card=self.machine.card, micro_batches=accum
        )
        speed = speed_of(work, strategy, rates, shape).samples_per_s
        return Candidate(
            **known,
            memory=memory,
            samples_per_s=speed,
            run_s=self.workload.num_windows * self.workload.epochs / speed,
            speed_source=rates.source,
            speed_error=rates.error,
            verdict=verdict,
            reason=reason,
        )

    def _memory(self, strategy: Strategy, micro_batch: int, seq_len: int, accum: int) -> MemoryEstimate:
        def estimate(*, whole: bool) -> MemoryEstimate:
            return self.estimator.estimate(
                strategy,
                micro_batch,
                seq_len,
                accumulating=accum > 1,
                micro_batches=accum,
                world_size=self.machine.processes(strategy),
                card=self.machine.card,
                whole=whole,
            )

        found = estimate(whole=False)
        # Fragmentation is known to a few percent from a part of the layers. Where that decides, all are traced.
        near = abs(found.device_bytes / self.machine.limit_bytes(strategy) - 1 + HEADROOM) < UNSURE
        return estimate(whole=True) if strategy.device == "cuda" and near else found
