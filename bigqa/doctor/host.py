"""The host: memory, what may be locked and shared of it, and the system around. In: hardware. Out: findings."""

import ctypes
import mmap
import os
from collections.abc import Iterator

import psutil

from bigqa.doctor.finding import Finding
from bigqa.language import Text, put, tr
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
    found = tr("{free} of {total} free", free=format_bytes(free), total=format_bytes(total))
    if total < whole:
        found = tr(
            "{found}: of the machine's {whole} this process may use no more (cgroup or ulimit)",
            found=found,
            whole=format_bytes(whole),
        )
    if free < LEAST_FREE_BYTES:
        cost = tr("small models alone can be trained")
        return Finding(tr("memory"), found, cost, tr("end what else runs, or raise the limit"))
    return Finding(tr("memory"), found)


def swap() -> Finding:
    """Say whether memory is on a disk."""
    found = psutil.swap_memory()
    if found.used > GIB:
        text = tr("{used} of {total} in use", used=format_bytes(found.used), total=format_bytes(found.total))
        cost = tr("steps take many times as long as predicted")
        return Finding(tr("swap"), text, cost, tr("end what else runs"))
    if found.total:
        text = tr("{total}, {used} in use", total=format_bytes(found.total), used=format_bytes(found.used))
        return Finding(tr("swap"), text)
    text = tr("none: without memory a run is killed at once, and goes on under a smaller strategy")
    return Finding(tr("swap"), text)


def locked(limit_bytes: int | None) -> Finding:
    """Say how much may be locked (`ulimit -l`), by locking some: for some users the limit does not hold."""
    name, limit = tr("locked memory"), _limit(limit_bytes)
    if can_lock(LOCKED_BYTES):
        holds = limit_bytes is None or limit_bytes >= LOCKED_BYTES
        return Finding(name, limit if holds else tr("{limit}, which does not hold for this user", limit=limit))
    return Finding(
        name,
        put("{limit} (ulimit -l)", limit=limit),
        tr("strategies that offload to a disk, and InfiniBand between machines, fail"),
        tr("ulimit -l unlimited; docker run --ulimit memlock=-1; or memlock in /etc/security/limits.conf"),
    )


def _limit(limit_bytes: int | None) -> Text:
    return tr("no limit") if limit_bytes is None else put("{size:,} KiB", size=limit_bytes // 1024)


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
    size = format_bytes(free_bytes)
    found = tr("{size} free", size=size) if free_bytes else tr("nothing free, or not there")
    if free_bytes >= SHARED_BYTES:
        return Finding("/dev/shm", found)
    return Finding(
        "/dev/shm",
        found,
        tr("runs of several processes may end in 'No space left on device', or a bus error"),
        tr("docker run --shm-size=8g, or --ipc=host; on Kubernetes an emptyDir of medium Memory at /dev/shm"),
    )


def threads(cores: int) -> Finding:
    """Say whether the environment holds threads back."""
    asked = {name: os.environ.get(name, "") for name in ("BIGQA_THREADS", "OMP_NUM_THREADS")}
    fewer = [f"{name}={text}" for name, text in asked.items() if text.isdecimal() and 0 < int(text) < cores]
    if not fewer:
        return Finding(tr("cores"), str(cores))
    found = tr("{cores}, and {fewer} is set", cores=cores, fewer=", ".join(fewer))
    mend = put("unset {name}", name=fewer[0].partition("=")[0])
    return Finding(tr("cores"), found, tr("steps on the CPU take longer"), mend)


def wsl(*, is_there: bool) -> Finding:
    """Say what is otherwise within Windows' Linux."""
    if not is_there:
        return Finding("WSL2", tr("no"))
    return Finding(
        "WSL2",
        tr("this is Linux within Windows"),
        tr("it has half of the machine's memory, less of it can be pinned, and folders of Windows (/mnt/c) are slow"),
        tr("give it more by memory= in .wslconfig, and keep data and runs within Linux"),
    )
