"""Limits of memory that the kernel keeps. In: a limit. Out: words to put before a command, or why there are none.

A limit is a cgroup of its own, made where this user may: in version 1's hierarchy of memory, in version 2's where a
group above this process's hands its memory controller on and may be written to (root, or a delegated service), else by
asking systemd for a scope. A limit of the process itself (`ulimit -v`) is none of them: an allocation that meets it
fails, and nobody is killed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from commands import LIMIT_S

CGROUP = Path("/sys/fs/cgroup")
ENTER = 'echo $BASHPID > "$1" || exit 125; shift; exec "$@"'
"""What a shell does to become a command in a group."""


def why_none() -> str | None:
    """Say why no limit can be had here; none: one can."""
    if sys.platform != "linux":
        return "limits of memory are tested on Linux alone"
    try:
        with limited(2**28) as words:
            tried = subprocess.run([*words, "true"], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no group of processes with a limit of memory: {error}"
    return None if tried.returncode == 0 else f"no group of processes with a limit of memory: {tried.stderr.strip()}"


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[list[str]]:
    """Yield what puts a command under a limit, which is not to be escaped by swapping. Raises: OSError."""
    parent, limits = place_of(CGROUP, Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    if parent is None:
        yield _systemd(limit_bytes)
        return
    own = parent / f"bigqa-test-{os.getpid()}"
    own.mkdir()
    try:
        for name, value in limits.items():
            # Without swap in the kernel the second file is missing, and there is nothing to forbid.
            if (own / name).exists():
                (own / name).write_text(str(limit_bytes if value is None else value))
        yield ["bash", "-c", ENTER, "bash", str(own / "cgroup.procs")]
    finally:
        _remove(own)


def place_of(root: Path, own_groups: str) -> tuple[Path | None, dict[str, int | None]]:
    """Return the folder to make a group in, and the files of a limit: of None, the limit itself."""
    lines = [line.split(":", 2) for line in own_groups.splitlines()]
    first = next((path for _, names, path in lines if "memory" in names.split(",")), None)
    if first is not None:
        for folder in _upwards(root / "memory", first):
            if os.access(folder, os.W_OK):
                return folder, {"memory.limit_in_bytes": None, "memory.memsw.limit_in_bytes": None}
    second = next((path for number, _, path in lines if number == "0"), "/")
    for folder in _upwards(root, second):
        handed_on = folder / "cgroup.subtree_control"
        can_be_left = os.access(folder / "cgroup.procs", os.W_OK)  # the kernel asks for it of the group above both
        if os.access(folder, os.W_OK) and can_be_left and "memory" in _read(handed_on).split():
            return folder, {"memory.max": None, "memory.swap.max": 0}
    return None, {}


def _upwards(root: Path, path: str) -> list[Path]:
    folder = root / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]


def _systemd(limit_bytes: int) -> list[str]:
    if shutil.which("systemd-run") is None:
        raise OSError("none that this user may make, and no systemd-run")
    whose = [] if os.geteuid() == 0 else ["--user"]
    limits = ["-p", f"MemoryMax={limit_bytes}", "-p", "MemorySwapMax=0"]
    return ["systemd-run", *whose, "--scope", "--quiet", "--collect", *limits, "--"]


def _remove(group: Path) -> None:
    """End what is left in a group, such as the workers of a command that took too long, and remove it."""
    for _ in range(100):
        for pid in _read(group / "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):  # the kernel may not be done with them yet
            group.rmdir()
            return
        time.sleep(0.05)
    raise OSError(f"{group} cannot be removed")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
