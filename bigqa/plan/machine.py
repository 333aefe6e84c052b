"""The part of the hardware that a plan is for, and what it allows. In: hardware, a strategy. Out: yes, or why not."""

from typing import Any, Literal, NamedTuple

from pydantic import Field

from bigqa.engine.build import not_together
from bigqa.language import tr
from bigqa.machine.hardware import Gpu, Hardware, Record
from bigqa.memory.cards import A100, Card, card_for
from bigqa.memory.estimate import MemoryEstimate
from bigqa.speed.calibration import kept_rates
from bigqa.speed.throughput import Rates
from bigqa.strategy import Precision, Strategy, can_be_traced, missing_package
from bigqa.units import format_bytes

HEADROOM = 0.02
"""Left free of a limit: a prediction's own error."""
HOST_HEADROOM = 0.05
Verdict = Literal["fits", "too large", "not possible"]
VERDICTS = (tr("fits"), tr("too large"), tr("not possible"))


class Limit(NamedTuple):
    """Memory of one kind, needed and there. Bytes."""

    kind: str
    needs: int
    has: int
    left_free: float
    """A share of what is there."""


class Machine(Record):
    """What a plan may use."""

    gpu: Gpu | None
    num_gpus: int = 1
    num_nodes: int = 1
    host_bytes: int
    host_cores: int
    cpu_bf16: bool
    nvme: bool = False
    disk_free_bytes: int | None = None
    disk_bytes_per_s: float | None = None
    rates: dict[str, Rates] = Field(default_factory=dict)
    """Name of a device ("cpu", or the card's) -> what was measured on it here; else a datasheet's are taken."""

    @property
    def world_size(self) -> int:
        """Processes, one per GPU."""
        return self.num_gpus * self.num_nodes

    @property
    def card(self) -> Card:
        """What of its card torch's memory hangs on."""
        return card_for(self.gpu.name, self.gpu.capability, self.gpu.total_bytes) if self.gpu else A100

    def processes(self, strategy: Strategy) -> int:
        """Return how many a strategy runs in: on a machine with GPUs, what is left to the CPU runs as one."""
        return self.world_size if strategy.device == "cuda" or self.gpu is None else 1

    def concerns(self, row: Strategy) -> bool:
        """Whether a row is of a device that is there."""
        return row.device == "cpu" or self.gpu is not None

    def low_precision(self, device: str) -> Precision:
        """Return the low precision that a device is best at."""
        if device == "cpu":
            return "bf16" if self.cpu_bf16 else "fp32"
        return "bf16" if self.gpu is not None and self.gpu.has_bf16 else "fp16"

    def lacks(self, strategy: Strategy, seq_len: int) -> str:
        """Say why a strategy cannot be had for windows of `seq_len` at all; nothing where it can."""
        gpu = self.gpu
        in_bf16 = strategy.precision.startswith("bf16") and strategy.device == "cuda"
        if in_bf16 and gpu is not None and not gpu.has_bf16:
            return tr("{gpu} has no bf16", gpu=gpu.name)
        if strategy.needs_disk and not self.nvme:
            return tr("needs --nvme DIR")
        if strategy.seq_len is not None and strategy.seq_len >= seq_len:
            return tr("windows are of {seq_len} already", seq_len=seq_len)
        # A plan for another machine may be made without what it runs on.
        runs_here = gpu is None or gpu.is_here or strategy.device == "cpu"
        missing = missing_package(strategy) if runs_here or not can_be_traced(strategy) else None
        return missing or not_together(strategy, self.processes(strategy)) or ""

    def limit_bytes(self, strategy: Strategy) -> int:
        """Return what runs short first: the GPU's free memory, or on the CPU the host's."""
        return self.gpu.free_bytes if strategy.device == "cuda" and self.gpu is not None else self.host_bytes

    def verdict(self, strategy: Strategy, memory: MemoryEstimate) -> tuple[Verdict, str]:
        """Say whether what one process needs is there, and if not, what is short."""
        short = self.short_of(strategy, memory)
        return ("too large", short.kind) if short else ("fits", "")

    def shortfall(self, strategy: Strategy, memory: MemoryEstimate) -> str | None:
        """Say in words what a strategy lacks here; none where it fits."""
        short = self.short_of(strategy, memory)
        if short is None:
            return None
        return tr(
            "this strategy needs {needs} of {kind}, and {has} are free",
            needs=format_bytes(short.needs),
            kind=short.kind,
            has=format_bytes(short.has),
        )

    def short_of(self, strategy: Strategy, memory: MemoryEstimate) -> Limit | None:
        """Return the first limit that a strategy is over; none where it fits."""
        on_a_machine = max(1, self.processes(strategy) // self.num_nodes)
        limits = [Limit(tr("host memory"), memory.host_bytes * on_a_machine, self.host_bytes, HOST_HEADROOM)]
        if strategy.device == "cuda":
            limits.insert(0, Limit(tr("GPU memory"), memory.device_bytes, self.limit_bytes(strategy), HEADROOM))
        if memory.disk_bytes and self.disk_free_bytes is not None:
            limits.append(Limit(tr("disk space"), memory.disk_bytes * on_a_machine, self.disk_free_bytes, 0.0))
        return next((limit for limit in limits if limit.needs > limit.has * (1 - limit.left_free)), None)


def machine_for(hardware: Hardware, gpu: Gpu | None, **counts: Any) -> Machine:
    """Return what a plan may use of the hardware."""
    return Machine(
        gpu=gpu,
        host_bytes=counts.pop("host_bytes", None) or hardware.host_free_bytes,
        host_cores=hardware.cpu.cores,
        cpu_bf16=hardware.cpu.bf16,
        disk_free_bytes=counts.pop("disk_free_bytes", hardware.disk_free_bytes),
        disk_bytes_per_s=hardware.disk_bytes_per_s,
        rates=kept_rates(hardware),
        **counts,
    )
