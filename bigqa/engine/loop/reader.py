"""Reads what steps found, when it is there. In: figures on the device. Out: records, and the wish of all to stop.

A GPU is launched ahead of: asking it for a number waits for everything launched before. So a step's numbers are sent to
the host behind it, and read when the next step has been launched; steps are timed by events on the device.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigqa.engine.loop.meter import MemoryMeter, SpeedMeter
from bigqa.engine.loop.recorder import Silent

Record = dict[str, Any]


@dataclass
class _Sent:
    record: Record
    numbers: Tensor
    """On the host, once the step is over."""
    over: Any
    """The `torch.cuda.Event` behind it."""


class StepReader:
    """Reads the steps of one run and hands them to its recorder."""

    def __init__(self, device: torch.device, recorder: Silent, speed: SpeedMeter) -> None:
        self.device, self.recorder, self.speed = device, recorder, speed
        self.last_loss: float | None = None
        self.stop_asked = False
        """Whether a process asked to stop, in a step that has been read."""
        self._memory = MemoryMeter(device)
        self._sent: _Sent | None = None
        self._pins = True
        self._before: Any = self._now()
        """Where the step begins that is read next: a time, or an event on the device."""

    def launched(self, record: Record, numbers: Tensor) -> None:
        """Take a step whose numbers may not be there yet: [3] on the device, loss, processes that ask to stop, norm."""
        if self.device.type != "cuda":
            values, now = numbers.tolist(), self._now()
            seconds, self._before = now - self._before, now
            self._tell(record, values, seconds)
            return
        there = self._room()
        there.copy_(numbers, non_blocking=True)
        self._read_sent(_Sent(record, there, self._now()))

    def _room(self) -> Tensor:
        """Make room for a step's numbers; where it cannot be pinned, they are as right, and the host waits for them."""
        if self._pins:
            try:
                return torch.empty(3, pin_memory=True)
            except RuntimeError:  # of the card itself, it is raised again as the numbers are sent
                self._pins = False
        return torch.empty(3)

    def read(self) -> None:
        """Read what is left."""
        self._read_sent(None)

    close = read

    def resume(self) -> None:
        """Begin anew: what was done between two steps, as to save, is no part of the next one's time."""
        self.read()
        self._before = self._now()

    def _read_sent(self, following: _Sent | None) -> None:
        sent, self._sent = self._sent, following
        if sent is None:
            return
        sent.over.synchronize()
        seconds, self._before = self._before.elapsed_time(sent.over) / 1000, sent.over
        self._tell(sent.record, sent.numbers.tolist(), seconds)

    def _tell(self, record: Record, numbers: list[float], seconds: float) -> None:
        self.last_loss, asked, norm = numbers
        self.stop_asked = self.stop_asked or asked > 0
        self.speed.add(record["windows"], record["tokens"])
        record |= {
            "loss": self.last_loss,
            "grad_norm": norm,
            "seconds": seconds,
            "samples_per_s": record["windows"] / seconds,
            "tokens_per_s": record["tokens"] / seconds,
            "memory_bytes": self._memory.now_bytes(),
            "peak_memory_bytes": self._memory.peak_bytes(),
        }
        self.recorder.step(record)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        # Blocking: who waits for it sleeps, and leaves the core to what makes batches and steps on the host.
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
