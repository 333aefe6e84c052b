"""Ends what the tests have started where they cannot do it themselves any more: when pytest is killed.

Run beside pytest: `python guard.py PID NAME`. In: a process, and what those that it started carry as MARK in their
environment. Out: when that process is gone, none of them runs. Linux alone, and nothing of Python's beyond the basics.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

MARK = "BIGQA_TESTS"
"""The variable that every process of a run inherits: NAME, or NAME/WORKER below one of pytest-xdist's workers."""
POLL_S = 0.2


def marked(name: str) -> dict[int, str]:
    """Return the processes that carry a run's mark, with their command lines; not this one."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended, or is another user's
            continue
        own = [one.decode(errors="replace") for one in variables if one.startswith(f"{MARK}=".encode())]
        if any(one == f"{MARK}={name}" or one.startswith(f"{MARK}={name}/") for one in own):
            found[int(folder.name)] = words
    return found


def kill(pid: int) -> None:
    """Kill a process, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Wait for the end of the process, then end all that it started, and what they start meanwhile."""
    parent, name = int(sys.argv[1]), sys.argv[2]
    while os.getppid() == parent:
        time.sleep(POLL_S)
    while found := marked(name):
        for pid in found:
            kill(pid)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
