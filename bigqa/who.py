"""Which process that was, and whether it still runs. In: numbers that a process wrote down. Out: yes or no.

A process's number is used again, and counts within its boot and its container alone; so all of these are written down.
"""

import contextlib
import os
import socket
from pathlib import Path

import psutil


def boot() -> str:
    """Return which boot of which kernel this is: the same for every container on it, another after a restart."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def room() -> str:
    """Return what processes are told apart in: a container has its own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def has_ended(pid: int, started: float) -> bool:
    """Say of a process of this boot and room whether it is gone; `started` tells it from a later one of its number."""
    try:
        process = psutil.Process(pid)
        return process.create_time() != started or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def me() -> dict[str, str | int | float]:
    """Return what others tell this process by; see `is_gone`."""
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
        "boot": boot(),
        "room": room(),
    }


def is_gone(who: dict[str, str | int | float]) -> bool | None:
    """Say whether a process of `me()` has ended; none where that cannot be seen from here."""
    if who.get("boot") != boot() or who.get("room") != room():
        return None
    return has_ended(int(who["pid"]), float(who["started"]))
