"""What a benchmark sees of a card: peaks from the first allocation on, and a driver that does not answer."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import until
from null_gpu import on_null_gpu

from bigqa.bench.meters import DeviceMeter
from bigqa.engine.recovery import HostWatch
from bigqa.machine import devices

CUDA = torch.device("cuda", 0)


class NvmlError(Exception):
    pass


class Nvml(SimpleNamespace):
    """One card, of which `used` tells what is used; `running` may be told to nobody."""

    NVMLError = NvmlError

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetMemoryInfo(self, card: str) -> Any:
        return SimpleNamespace(used=self.used())

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> list[Any]:
        raise NvmlError("not permitted")

    def nvmlDeviceGetTotalEnergyConsumption(self, card: str) -> int:
        raise NvmlError("not supported")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], DeviceMeter]:
    def made(used: Callable[[], int]) -> DeviceMeter:
        monkeypatch.setitem(sys.modules, "pynvml", Nvml(used=used))
        monkeypatch.setattr(devices, "handles", lambda nvml: ["the card"])
        for name in ("max_memory_allocated", "max_memory_reserved"):
            monkeypatch.setattr(torch.cuda, name, lambda device: 5)
        return DeviceMeter(CUDA)

    return made


def test_peaks_are_not_asked_for_before_there_is_cuda(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls it an invalid device argument: every case without a cap died of it."""
    asked: list[torch.device] = []
    is_there = False

    def reset(device: torch.device) -> None:
        if not is_there:
            raise RuntimeError("Invalid device argument 0: did you call init?")
        asked.append(device)

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_there)
    with card(lambda: 7):
        assert asked == []
    is_there = True
    with card(lambda: 7):
        assert asked == [CUDA]


def test_without_a_list_of_processes_the_card_tells_what_was_added(card: Any) -> None:
    levels = [100, 130, 170, 120]
    with card(lambda: levels.pop(0) if levels else 110) as meter:
        until(lambda: not levels)  # however seldom the thread that looks has its turn
    assert meter.peaks()["peak_gpu_bytes"] == 70


def test_a_driver_that_does_not_answer_is_no_peak_and_no_end(card: Any) -> None:
    calls = 0

    def used() -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise NvmlError("unknown error")
        return 100 + calls

    with card(used) as meter:
        until(lambda: calls >= 3)
        assert meter._nvml._thread.is_alive()  # it goes on looking
    found = meter.peaks()
    assert found["peak_gpu_bytes"] is None and found["peak_reserved_bytes"] == 5


def test_the_watch_over_the_host_goes_on_where_it_cannot_look() -> None:
    looks = 0

    def free_bytes() -> tuple[int, int]:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise OSError("a file of the kernel's that is changing")
        return 2**30, 2**30

    with HostWatch(free_bytes):
        until(lambda: looks >= 4)


@pytest.mark.nullgpu
def test_a_case_without_a_cap_runs_to_its_end() -> None:
    program = """
import json, tempfile
from pathlib import Path
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
axes = rows_on("cuda", "bf16", ("plain",))["plain"]
case = Case(model="enliple-small", strategy="plain", axes=axes, seq_len=64, micro_batch=2, global_batch=4, steps=1)
found = worker.measure(case, Path(tempfile.mkdtemp()))
print(json.dumps([found.outcome, found.peak_allocated_bytes, found.peak_gpu_bytes, found.peak_reserved_bytes]))
"""
    outcome, allocated, seen, reserved = on_null_gpu(program)
    assert outcome == "ok" and 0 < allocated <= reserved == seen
