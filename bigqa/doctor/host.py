"""The host: memory, what may be locked and shared of it, and the system around. In: hardware. Out: findings."""

import ctypes
import mmap
import os
from collections.abc import Iterator

import psutil

from bigqa.doctor.finding import Finding
from bigqa.machine.hardware import Hardware
from bigqa.units import GIB, MIB, format_bytes

LOCKED_BYTES = 64 * MIB
"""What is locked to see whether it can be: a buffer of what is offloaded to a disk."""
SHARED_BYTES = GIB
LEAST_FREE_BYTES = 2 * GIB


def findings(hardware: Hardware) -> Iterator[Finding]:
    """Look at all of it."""
    yield memory(hardware)
    yield swap()
    yield locked(hardware.memlock_bytes)
    yield shared(hardware.shm_bytes)
    yield threads(hardware.cpu.cores)
    yield wsl(is_there=hardware.wsl)


def memory(hardware: Hardware) -> Finding:
    """Say how much there is, and how much of it this process may use."""
    total, free, whole = hardware.host_total_bytes, hardware.host_free_bytes, int(psutil.virtual_memory().total)
    found = f"{format_bytes(free)} of {format_bytes(total)} free"
    if total < whole:
        found += f": of the machine's {format_bytes(whole)} this process may use no more (cgroup or ulimit)"
    if free < LEAST_FREE_BYTES:
        return Finding("memory", found, "small models alone can be trained", "end what else runs, or raise the limit")
    return Finding("memory", found)


def swap() -> Finding:
    """Say whether memory is on a disk."""
    found = psutil.swap_memory()
    if found.used > GIB:
        text = f"{format_bytes(found.used)} of {format_bytes(found.total)} in use"
        return Finding("swap", text, "steps take many times as long as predicted", "end what else runs")
    if found.total:
        return Finding("swap", f"{format_bytes(found.total)}, {format_bytes(found.used)} in use")
    return Finding("swap", "none: without memory a run is killed at once, and goes on under a smaller strategy")


def locked(limit_bytes: int | None) -> Finding:
    """Say how much may be locked (`ulimit -l`), by locking some: for some users the limit does not hold."""
    limit = "no limit" if limit_bytes is None else f"{limit_bytes // 1024:,} KiB"
    if can_lock(LOCKED_BYTES):
        holds = "" if limit_bytes is None or limit_bytes >= LOCKED_BYTES else ", which does not hold for this user"
        return Finding("locked memory", f"{limit}{holds}")
    return Finding(
        "locked memory", f"{limit} (ulimit -l)",
        "strategies that offload to a disk, and InfiniBand between machines, fail",
        "ulimit -l unlimited; docker run --ulimit memlock=-1; or memlock in /etc/security/limits.conf",
    )  # fmt: skip


def can_lock(size_bytes: int) -> bool:
    """Lock so much memory and let go of it again; return whether that was possible."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, size_bytes) as pages:
        address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(pages)))
        is_locked = libc.mlock(address, ctypes.c_size_t(size_bytes)) == 0
        if is_locked:
            libc.munlock(address, ctypes.c_size_t(size_bytes))
    return is_locked


def shared(free_bytes: int) -> Finding:
    """Say whether /dev/shm has room for what processes hand each other."""
    found = f"{format_bytes(free_bytes)} free" if free_bytes else "nothing free, or not there"
    if free_bytes >= SHARED_BYTES:
        return Finding("/dev/shm", found)
    return Finding(
        "/dev/shm", found, "runs of several processes may end in 'No space left on device', or a bus error",
        "docker run --shm-size=8g, or --ipc=host; on Kubernetes an emptyDir of medium Memory at /dev/shm",
    )  # fmt: skip


def threads(cores: int) -> Finding:
    """Say whether the environment holds threads back."""
    asked = {name: os.environ.get(name, "") for name in ("BIGQA_THREADS", "OMP_NUM_THREADS")}
    fewer = [f"{name}={text}" for name, text in asked.items() if text.isdecimal() and 0 < int(text) < cores]
    if not fewer:
        return Finding("cores", str(cores))
    found, mend = f"{cores}, and {', '.join(fewer)} is set", f"unset {fewer[0].partition('=')[0]}"
    return Finding("cores", found, "steps on the CPU take longer", mend)


def wsl(*, is_there: bool) -> Finding:
    """Say what is otherwise within Windows' Linux."""
    if not is_there:
        return Finding("WSL2", "no")
    return Finding(
        "WSL2", "this is Linux within Windows",
        "it has half of the machine's memory, less of it can be pinned, and folders of Windows (/mnt/c) are slow",
        "give it more by memory= in .wslconfig, and keep data and runs within Linux",
    )  # fmt: skip
