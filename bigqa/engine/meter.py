"""Memory and speed of a run, as they are now. In: a device, and what each step trained on. Out: numbers."""

import resource
import sys
import time

import psutil
import torch


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
        unit_bytes = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


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
