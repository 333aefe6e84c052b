"""What this machine has, or what a named card would have. In: nothing, or names. Out: `Hardware`.

Memory is what this process may use: the limits of its cgroup count, and what other processes hold is taken off.
"""

import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from bigqa.errors import BigqaError
from bigqa.files import write_error
from bigqa.language import tr
from bigqa.machine import devices
from bigqa.machine.gpus import GPUS, GpuModel, find_gpu

CGROUP = Path("/sys/fs/cgroup")


class Record(BaseModel):
    """A frozen record that rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(Record):
    """One card."""

    name: str
    total_bytes: int
    free_bytes: int
    """Now; less than the total where other processes use the card."""
    capability: tuple[int, int]
    driver: str | None = None
    model: GpuModel | None = None
    """Its datasheet, where the table has it."""
    others: int = 0
    """Other processes on the card."""
    is_here: bool = True

    @property
    def has_bf16(self) -> bool:
        """Whether its matrix units multiply in bf16."""
        return self.capability >= (8, 0)


class Cpu(Record):
    """The processor, as far as this process may use it."""

    name: str
    cores: int
    bf16: bool
    """Has instructions that multiply in bf16 (AVX512-BF16 or AMX)."""
    avx512: bool
    amx: bool


class Hardware(Record):
    """One machine. Bytes."""

    gpus: tuple[Gpu, ...]
    cpu: Cpu
    host_total_bytes: int
    """RAM that this process may use: the machine's, or its cgroup's limit."""
    host_free_bytes: int
    swap_bytes: int
    shm_bytes: int
    memlock_bytes: int | None
    """The most that may be pinned; none: no limit."""
    disk_path: str | None = None
    disk_free_bytes: int | None = None
    disk_write_bytes_per_s: float | None = None
    """Measured in the offload folder, past the page cache."""
    disk_read_bytes_per_s: float | None = None
    container: bool = False
    wsl: bool = False

    @property
    def disk_bytes_per_s(self) -> float | None:
        """The slower of both rates; none where no disk was measured."""
        rates = self.disk_write_bytes_per_s, self.disk_read_bytes_per_s
        return min((rate for rate in rates if rate), default=None)


def detect(disk: Path | None = None) -> Hardware:
    """Look at this machine."""
    total, free = host_memory()
    write_rate, read_rate = disk_rates(disk) if disk else (None, None)
    return Hardware(
        gpus=tuple(detect_gpus()),
        cpu=detect_cpu(),
        host_total_bytes=total,
        host_free_bytes=free,
        swap_bytes=psutil.swap_memory().total,
        shm_bytes=free_space(Path("/dev/shm")) or 0,
        memlock_bytes=_memlock(),
        disk_path=str(disk) if disk else None,
        disk_free_bytes=free_space(disk) if disk else None,
        disk_write_bytes_per_s=write_rate,
        disk_read_bytes_per_s=read_rate,
        container=Path("/.dockerenv").exists() or "container" in os.environ,
        wsl="microsoft" in platform.release().lower(),
    )


def planned_gpu(name: str, memory_bytes: int | None = None) -> Gpu:
    """Return a card that is not here. Raises: BigqaError for one that the table does not know."""
    model = find_gpu(name)
    if model is None:
        known = ", ".join(card.name for card in GPUS)
        raise BigqaError(tr("no GPU {name} in the table: use --gpu-memory with one of {known}", name=name, known=known))
    total = min(memory_bytes or model.memory_bytes, model.memory_bytes)
    return Gpu(
        name=model.name, total_bytes=total, free_bytes=total, capability=model.capability, model=model, is_here=False
    )


def capped(gpu: Gpu, memory_bytes: int) -> Gpu:
    """Return a card that may be used up to a limit only."""
    return gpu.model_copy(
        update={"total_bytes": min(gpu.total_bytes, memory_bytes), "free_bytes": min(gpu.free_bytes, memory_bytes)}
    )


def detect_gpus() -> list[Gpu]:
    """Ask the driver, through NVML, for the cards that CUDA counts, in its order. An empty list without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, or no card: the same thing here
        return []
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        return [_nvml_gpu(handle, driver) for handle in devices.handles(pynvml)]
    except pynvml.NVMLError:  # a card that tells nothing of its memory cannot be planned for
        return []
    finally:
        pynvml.nvmlShutdown()


def _nvml_gpu(handle: Any, driver: str) -> Gpu:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name = str(pynvml.nvmlDeviceGetName(handle))
    try:
        others = [p for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid != os.getpid()]
    except pynvml.NVMLError:  # not told to everybody
        others = []
    return Gpu(
        name=name,
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        capability=devices.capability(pynvml, handle),
        driver=driver,
        model=find_gpu(name, int(memory.total)),
        others=len(others),
    )


def detect_cpu() -> Cpu:
    """Read the processor's name and instructions."""
    text = _read(Path("/proc/cpuinfo")) or ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(names.get("flags", names.get("Features", "")).split())
    return Cpu(
        name=names.get("model name", platform.processor() or platform.machine()),
        cores=usable_cores(),
        bf16=bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        avx512="avx512f" in flags,
        amx="amx_tile" in flags,
    )


def usable_cores() -> int:
    """Return the cores that this process may use: its affinity, and its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    quota = (_read(CGROUP / "cpu.max") or "").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def host_memory() -> tuple[int, int]:
    """Return the RAM that this process may use, and how much of it is free now. Bytes."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for limit_file, used_file in _cgroup_files():
        limit, used = _read(limit_file), _read(used_file)
        if limit and limit.isdigit() and int(limit) < total:
            total = int(limit)
            free = min(free, total - _without_cache(int(used or 0), used_file.parent))
    for limit_bytes, used_bytes in _process_limits():
        total, free = min(total, limit_bytes), min(free, limit_bytes - used_bytes)
    return total, max(free, 0)


def _process_limits() -> list[tuple[int, int]]:
    """Return (limit, used) of this process's own limits (`ulimit -v`, `ulimit -d`), where they are set. Bytes."""
    try:
        import resource
    except ImportError:
        return []
    names = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    limits = [(resource.getrlimit(number)[0], name) for number, name in names]
    if all(limit == resource.RLIM_INFINITY for limit, _ in limits):
        return []
    status = dict(line.split(":", 1) for line in (_read(Path("/proc/self/status")) or "").splitlines() if ":" in line)
    return [
        (limit, int(status.get(name, "0 kB").split()[0]) * 1024)
        for limit, name in limits
        if limit != resource.RLIM_INFINITY
    ]


def disk_rates(folder: Path, size_bytes: int = 2**27) -> tuple[float, float]:
    """Write a file in a folder and read it back; return both rates. Raises: BigqaError where nothing can be written."""
    block = os.urandom(2**22)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".bigqa-rate.", buffering=0) as file:
            started = time.perf_counter()
            for _ in range(size_bytes // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            written_s = time.perf_counter() - started
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            started = time.perf_counter()
            while file.read(len(block)):
                pass
            read_s = time.perf_counter() - started
    except OSError as error:
        raise write_error(folder, error) from None
    return size_bytes / written_s, size_bytes / read_s


def _cgroup_files() -> list[tuple[Path, Path]]:
    """Return the files of limit and use, of this process's own cgroup and of those around it; version 1, then 2."""
    own = [line.split(":", 2) for line in (_read(Path("/proc/self/cgroup")) or "").splitlines()]
    first = next((path for _, names, path in own if "memory" in names.split(",")), "/")
    second = next((path for number, _, path in own if number == "0"), "/")
    v1 = [(f / "memory.limit_in_bytes", f / "memory.usage_in_bytes") for f in _upwards(CGROUP / "memory", first)]
    v2 = [(f / "memory.max", f / "memory.current") for f in _upwards(CGROUP, second)]
    return [*v1, *v2]


def _upwards(root: Path, path: str) -> list[Path]:
    folder = root / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]


def _without_cache(used: int, folder: Path) -> int:
    # Pages of files that can be dropped count as used, and are not in the way.
    stat = dict(line.split() for line in (_read(folder / "memory.stat") or "").splitlines() if len(line.split()) == 2)
    return max(0, used - int(stat.get("total_inactive_file", stat.get("inactive_file", 0))))


def _memlock() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def free_space(path: Path) -> int | None:
    """Return the bytes that are free where a folder is, or will be; none where that cannot be told."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
