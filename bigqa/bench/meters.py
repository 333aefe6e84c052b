"""Memory and energy of a benchmark's process, so that short peaks are not missed. In: a device. Out: peaks, in bytes.

torch's allocator and the kernel keep high-water marks of their own. What NVML shows has none: a thread looks at it
every few milliseconds.
"""

import threading

import psutil
import torch

from bigqa.engine.loop.meter import MemoryMeter
from bigqa.engine.pinned import pinned_by_all
from bigqa.machine import devices
from bigqa.machine.contexts import context_of

INTERVAL_S = 0.005


class DeviceMeter:
    """Hold it around what is measured."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.energy_j: float | None = None
        self._host = MemoryMeter(torch.device("cpu"))
        self._nvml = _Nvml(device.index or 0) if device.type == "cuda" else None
        self._energy_before: float | None = None

    def __enter__(self) -> "DeviceMeter":
        """Begin."""
        if self._nvml is not None:
            if torch.cuda.is_initialized():  # else there are no peaks yet, and asking for them is an error
                torch.cuda.reset_peak_memory_stats(self.device)
            self._nvml.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        if self._nvml is not None:
            self._nvml.stop()

    def cap(self, cap_bytes: int | None) -> None:
        """Limit torch's allocator to what a card of this size would leave it."""
        if cap_bytes is None or self.device.type != "cuda":
            return
        card = torch.cuda.get_device_properties(self.device)
        left = max(0, cap_bytes - context_of(card.name, card.total_memory))
        torch.cuda.set_per_process_memory_fraction(min(1.0, left / card.total_memory), self.device)

    def begin_timing(self) -> None:
        """Read the energy counter where the warm-up ends."""
        self._energy_before = None if self._nvml is None else self._nvml.energy_j()

    def end_timing(self) -> None:
        """Read it where a timed step ends."""
        now = None if self._nvml is None else self._nvml.energy_j()
        if now is not None and self._energy_before is not None:
            self.energy_j = now - self._energy_before

    def peaks(self) -> dict[str, int | None]:
        """Return what was found so far."""
        found: dict[str, int | None] = {"peak_host_bytes": self._host.peak_bytes()}
        if self._nvml is not None:
            found |= {
                "peak_allocated_bytes": torch.cuda.max_memory_allocated(self.device),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device),
                "peak_gpu_bytes": self._nvml.peak_bytes,
                "pinned_bytes": pinned_by_all(),
            }
        return found


class _Nvml:
    """One card, seen from outside of this process."""

    def __init__(self, index: int) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._card = devices.handles(pynvml)[index]
        self.peak_bytes: int | None = 0
        """None: the driver did not answer each time, and a peak may have been missed."""
        self._others = self._used() - self._own()
        self._done = threading.Event()

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._watch, name="nvml", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look a last time, and stop."""
        self._done.set()
        self._thread.join()
        self._look()

    def energy_j(self) -> float | None:
        """Return the card's energy counter."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._card)) / 1000
        except self._nvml.NVMLError:
            return None

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        if self.peak_bytes is None:
            return
        try:
            # By process where the driver tells; in a container it often knows other numbers of processes.
            self.peak_bytes = max(self.peak_bytes, self._own() or self._used() - self._others)
        except self._nvml.NVMLError:
            self.peak_bytes = None

    def _used(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._card).used)

    def _own(self) -> int:
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._card)
        except self._nvml.NVMLError:  # not told to everybody
            return 0
        return sum(int(one.usedGpuMemory or 0) for one in running if one.pid == psutil.Process().pid)
