"""Memory and speed of a run, as they are now. In: a device, and what each step trained on. Out: numbers."""

import resource
import sys
import time
from pathlib import Path

import psutil
import torch


def peak_resident_bytes() -> int:
    """Return the most that was resident of this process.

    From /proc where there is one: `getrusage` counts the parent's too, of a process begun by `vfork` as Python's are.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peaks = [line for line in status.read_text(encoding="ascii", errors="replace").splitlines() if "VmHWM" in line]
        if peaks:
            return int(peaks[0].split()[1]) * 1024
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


class MemoryMeter:
    """Memory of this process: allocated by torch on a GPU, resident on a CPU. Bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._process = psutil.Process()

    def now_bytes(self) -> int:
        """Memory in use now."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return int(self._process.memory_info().rss)

    def peak_bytes(self) -> int:
        """The most that was in use so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()


class SpeedMeter:
    """Windows and real tokens per second, since the start and over the last steps."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.windows = 0
        self.tokens = 0

    def add(self, windows: int, tokens: int) -> None:
        """Count a finished step."""
        self.windows += windows
        self.tokens += tokens

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def rates(self) -> tuple[float, float]:
        """Return windows per second and tokens per second."""
        elapsed = max(self.elapsed_s(), 1e-9)
        return self.windows / elapsed, self.tokens / elapsed
