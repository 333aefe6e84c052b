"""How much GPU memory is enough. In: a question. Out: for each strategy the least that it needs, and on which cards."""

from dataclasses import dataclass

from bigqa.engine.build import not_together
from bigqa.errors import BigqaError
from bigqa.machine.gpus import GPUS, GpuModel
from bigqa.memory.estimate import Estimator, MemoryEstimate
from bigqa.plan.candidates import Workload
from bigqa.plan.machine import HEADROOM
from bigqa.plan.planner import known_estimator
from bigqa.plan.question import Question, wanted
from bigqa.strategy import STRATEGIES, Strategy, can_be_traced, with_low_precision
from bigqa.tasks.registry import kind_of


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
    host_bytes: int = 0
    """Of the host, where it is least."""
    disk_bytes: int = 0
    """Of a fast disk."""
    reason: str = ""
    """Why the strategy cannot be had at all; nothing where it can."""


def need(question: Question) -> list[Need]:
    """Return the least GPU memory for each strategy on one GPU."""
    _, config, workload = wanted(question)
    estimator = known_estimator(config, kind_of(question.task))
    rows = {
        name: row
        for name, row in STRATEGIES.items()
        if row.device == "cuda" and (row.seq_len or 0) < workload.seq_len and can_be_traced(row)
    }
    estimator.trace_ahead(
        (row, row.seq_len or workload.seq_len, accumulating)
        for row in rows.values()
        if not row.needs_deepspeed  # whose traces are of all layers, and are few
        for accumulating in (True, False)
    )
    found = [_need(estimator, name, row, workload) for name, row in rows.items()]
    return sorted(found, key=lambda row: (row.reason != "", row.tier, row.least_bytes))


def _need(estimator: Estimator, name: str, strategy: Strategy, workload: Workload) -> Need:
    seq_len = strategy.seq_len or workload.seq_len
    try:
        least, published = (
            _memory(estimator, strategy, size, seq_len, workload.global_batch) for size in (1, workload.global_batch)
        )
    except BigqaError as error:
        return Need(name, strategy.tier, 0, 0, (), reason=str(error))
    enough = [card for card in GPUS if card.memory_bytes * (1 - HEADROOM) >= least.device_bytes]
    cards = tuple(card.name for card in enough if _can_run(card, strategy))
    sizes = least.device_bytes, published.device_bytes
    return Need(name, strategy.tier, *sizes, cards, host_bytes=least.host_bytes, disk_bytes=least.disk_bytes)


def _memory(
    estimator: Estimator, row: Strategy, micro_batch: int, seq_len: int, global_batch: int
) -> MemoryEstimate:  # fmt: skip
    count = -(-global_batch // micro_batch)
    return estimator.estimate(row, micro_batch, seq_len, accumulating=count > 1, micro_batches=count)


def _can_run(card: GpuModel, row: Strategy) -> bool:
    """Whether a card has the precision of a row, and the row goes with what takes its place on older ones."""
    if row.precision == "bf16-sr":
        return card.has_bf16
    return not_together(with_low_precision(row, "bf16" if card.has_bf16 else "fp16")) is None
