"""What breaks a run, done from within one of its processes at the moment drawn. In: a kind, its figures. Out: harm.

Signals are sent, memory limits set by the kernel's own means, disks filled, unmounted, mounted, files cut short: only
the clock is this process's own (`time.time`), since the machine's serves others too.
"""

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.torture.gpu import crowd
from benchmarks.torture.inside import jumping_clock
from benchmarks.torture.log import Log
from benchmarks.torture.places import Place
from bigqa.engine.loop.stop import PARENT_VARIABLE

Deed = Callable[[], None]
MIB = 2**20


def launcher_of() -> int:
    """Return the launcher's process; this one where it is the launcher."""
    return int(os.environ.get(PARENT_VARIABLE, os.getpid()))


def deed_of(kind: str, figures: dict[str, Any], place: Place, log: Log) -> Deed:
    """Return what a kind of fault does."""
    if kind.startswith("SIG"):
        return lambda: _signal(getattr(signal, kind.partition("-")[0]), 2 if kind.endswith("twice") else 1)
    deeds: dict[str, Deed] = {
        "kill-worker": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "kill-launcher": lambda: os.kill(launcher_of(), signal.SIGKILL),
        "kill-all": lambda: _kill_all(log),
        "kill-in-write": lambda: _limit_files(int(figures["bytes"]), kills=True),
        "file-limit": lambda: _limit_files(int(figures["bytes"]), kills=False),
        "memory-limit": lambda: _limit_memory(int(figures["bytes"])),
        "memory-killed": lambda: place.enter_group(int(figures["bytes"])),
        "disk-full": lambda: place.fill(int(figures["bytes"])),
        "disk-away": lambda: _away(place, figures["seconds"]),
        "cut-data": lambda: _cut([place.data], figures["share"]),
        "cut-cache": lambda: _cut(place.cached(), figures["share"]),
        "clock": lambda: jumping_clock(figures["seconds"]),
        "device-memory": lambda: crowd(int(figures["bytes"])),
    }
    return deeds[kind]


def _signal(number: int, times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(ProcessLookupError):
            os.kill(launcher_of(), number)


def _kill_all(log: Log) -> None:
    """Kill every process of the run, as a machine that goes down does."""
    others = {fact["pid"] for fact in log.read("process")} - {os.getpid(), launcher_of()}
    for pid in (launcher_of(), *others, os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _limit_files(size: int, *, kills: bool) -> None:
    """Let no file be written beyond a size: such a write is cut short there, and kills, or fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kills else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _limit_memory(more: int) -> None:
    """Let allocations fail that want more than so much beside what there is."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))


def _away(place: Place, seconds: float) -> None:
    place.take_away()
    timer = threading.Timer(seconds, place.bring_back)
    timer.daemon = True
    timer.start()


def _cut(files: list[Path], share: float) -> None:
    """Cut files short."""
    for file in files:
        with contextlib.suppress(OSError):
            os.truncate(file, int(file.stat().st_size * share))
