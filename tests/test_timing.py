"""What takes how long when nothing else runs: told by the kernel's own count of waiting."""

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from hand_made import RATES

from bigqa.speed import calibration, timing
from bigqa.speed.rates import KnownRates
from bigqa.speed.throughput import Rates


class Clock:
    """Time that passes as pieces say, and threads that wait as they say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.waited = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "waited_s", lambda: self.waited)

    def piece(self, took: Iterator[tuple[float, float]]) -> None:
        """Take so long, of which threads wait so long for a core."""
        seconds, waited = next(took)
        self.now, self.waited = self.now + seconds, self.waited + waited


def test_only_pieces_in_which_nobody_waited_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each burst the first call does not count; of the others half are disturbed, one by less than shows."""
    clock = Clock(monkeypatch)
    took = itertools.cycle([(0.010, 0.008), (0.002, 0.0), (0.004, 0.002), (0.002, 0.0), (0.001, 0.0005)])
    found = timing.undisturbed({"a": lambda: clock.piece(took)}, 0.2)
    assert found.seconds == {"a": pytest.approx(0.002)} and 0.3 < found.disturbed < 0.9


def test_where_all_are_disturbed_it_looks_for_longer_and_then_takes_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    took = itertools.cycle([(0.005, 0.001), (0.009, 0.002), (0.005, 0.001), (0.003, 0.001)])
    found = timing.undisturbed({"a": lambda: clock.piece(took)}, 0.05)
    assert found.seconds["a"] == pytest.approx(0.003) and found.disturbed == 1.0
    assert clock.now == pytest.approx(timing.LONGER * 0.05, rel=0.2)


def test_kinds_take_turns_in_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of other work spoils a few pieces of each kind, and not all of one."""
    clock, order = Clock(monkeypatch), []

    def piece(name: str) -> None:
        order.append(name)
        clock.now += 0.004

    timing.undisturbed({name: lambda name=name: piece(name) for name in "abc"}, 0.05)  # type: ignore[misc]
    turns = [name for name, _ in itertools.groupby(order)]
    assert len(turns) >= 9 and "".join(turns) == "abc" * (len(turns) // 3)


def test_the_kernel_counts_who_waits() -> None:
    """Two processes on one core: each waits about as long as the other runs."""
    core = min(os.sched_getaffinity(0))
    program = (
        "import os, time\n"
        f"os.sched_setaffinity(0, {{{core}}})\n"
        "from bigqa.speed.timing import waited_s\n"
        "before, end = waited_s(), time.monotonic() + 1.0\n"
        "while time.monotonic() < end: pass\n"
        "print(waited_s() - before)\n"
    )
    words = [sys.executable, "-c", program]
    other = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
    )
    try:
        waited = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    finally:
        other.kill()
        other.wait()
    if waited == 0.0:
        pytest.skip("this kernel does not count how long threads wait")
    assert waited > 0.1


def _kept(**changes: float) -> Rates:
    return dataclasses.replace(RATES, adam_per_s=1e9, adam8bit_per_s=5e7, half_speed_tokens=80, **changes)


@pytest.mark.parametrize(("factor", "renewed"), [(1.0, False), (1.08, False), (0.8, True), (1.3, True)])
def test_kept_rates_are_checked_and_renewed_where_they_no_longer_hold(
    monkeypatch: pytest.MonkeyPatch, factor: float, *, renewed: bool
) -> None:
    kept = _kept()
    now = dataclasses.replace(
        _kept(), bytes_per_s=kept.bytes_per_s * factor, half_speed_tokens=0, adam8bit_per_s=None, source="now"
    )
    monkeypatch.setattr(calibration, "measure_cpu", lambda seconds: now)
    found = KnownRates({"cpu": kept}, None, None).of("cpu")
    if not renewed:
        assert found == kept
        return
    assert found.bytes_per_s == now.bytes_per_s
    assert (found.half_speed_tokens, found.adam8bit_per_s) == (80, 5e7)  # which take longer to measure
    assert f"off by {abs(factor - 1):.0%}" in found.source


def test_what_is_measured_in_passing_is_all_that_a_probe_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONGER", 1)
    began, threads = time.perf_counter(), torch.get_num_threads()
    found = calibration.measure_cpu(0.002)
    assert time.perf_counter() - began < 60 and torch.get_num_threads() == threads
    values = [getattr(found, name) for name in calibration.CHECKED]
    assert all(value > 1e6 for value in values) and found.fresh_bytes_per_s and found.drawn_per_s
