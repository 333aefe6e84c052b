"""A limit on the RAM of a child process, by the kernel. In: bytes. Out: a prefix for its command.

A control group where this user may make one: what a container has. Else a limit on the process's own data, which counts
what is reserved as well as what is used.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.machine.hardware import CGROUP

V1 = (CGROUP / "memory", "memory.limit_in_bytes")
V2 = (CGROUP, "memory.max")


@contextlib.contextmanager
def ram_cap(cap_bytes: int | None) -> Iterator[list[str]]:
    """Yield what to put before a command so that it gets at most this much RAM; nothing without a cap.

    Raises: BigqaError where the kernel has no such limit.
    """
    if cap_bytes is None:
        yield []
        return
    if not sys.platform.startswith("linux"):
        raise BigqaError(tr("--caps on a CPU needs Linux: the kernel limits the memory"))
    for root, file in (V1, V2):
        group = root / f"bigqa-bench-{os.getpid()}"
        try:
            group.mkdir()
            (group / file).write_text(str(cap_bytes), encoding="utf-8")
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        finally:
            _remove(group)
        return
    yield ["sh", "-c", f'ulimit -d {cap_bytes // 1024}; exec "$@"', "sh"]


def _remove(group: Path) -> None:
    for _ in range(50):  # the kernel lets go of a group a moment after its last process
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
