"""What the devices of a plan reach. In: rates measured here, a card. Out: `Rates`: measured, else of a datasheet."""

from dataclasses import replace

from bigqa.language import tr
from bigqa.machine.gpus import GPUS, GpuModel
from bigqa.machine.hardware import Gpu
from bigqa.speed.calibration import QUICK_S, checked, measure_cpu
from bigqa.speed.throughput import Rates, gpu_rates


class KnownRates:
    """Rates of the CPU here and of one card. Measured: name of a device ("cpu", or the card's) -> its rates."""

    def __init__(self, measured: dict[str, Rates], gpu: Gpu | None, disk_bytes_per_s: float | None) -> None:
        self.measured = measured
        self.gpu = gpu
        self.disk_bytes_per_s = disk_bytes_per_s
        self._cpu: Rates | None = None

    def of(self, device: str) -> Rates:
        """Return what "cpu" or "cuda" reaches; a card without measurement and datasheet: what the most like it does."""
        if device == "cpu":
            if self._cpu is None:
                kept = self.measured.get("cpu")
                self._cpu = checked(kept) if kept is not None and kept.adam_per_s else kept or measure_cpu(QUICK_S)
            return self._cpu
        assert self.gpu is not None
        found = self.measured.get(self.gpu.name) if self.gpu.is_here else None
        found = found or (gpu_rates(self.gpu.model) if self.gpu.model else _of_the_like(self.gpu))
        return replace(found, disk_bytes_per_s=self.disk_bytes_per_s) if self.disk_bytes_per_s else found


def _of_the_like(gpu: Gpu) -> Rates:
    def unlikeness(card: GpuModel) -> tuple[int, float]:
        return abs(card.capability[0] - gpu.capability[0]), abs(card.memory_bytes / gpu.total_bytes - 1)

    like = min(GPUS, key=unlikeness)
    return replace(
        gpu_rates(like),
        source=tr("no datasheet of {gpu}; that of {like}, the most like it", gpu=gpu.name, like=like.name),
        error=0.5,
    )
