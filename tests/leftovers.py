"""Ends what the tests start, and names what was left running. In: pytest's configuration. Out: failures with names.

Orphans come to the process that runs the tests (`PR_SET_CHILD_SUBREAPER`), so what lies below it is all that its tests
have started. After each test what still runs is named and killed, and the test has failed; after the last one the
machine is looked through for the run's mark; and where pytest itself is killed, a guard beside it kills what carries
the mark (see `guard`). Linux alone.
"""

import ctypes
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import guard
import psutil
import pytest

GRACE_S = 30.0
"""For what is about to end by itself: on a busy machine that takes a while."""
POLL_S = 0.02
PR_SET_CHILD_SUBREAPER = 36
OF_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""These live as long as the process that runs the tests, and end with it."""


def watch(config: pytest.Config, grace_s: float = GRACE_S) -> None:
    """Watch over a run of pytest: to be called by `pytest_configure`, in the controller and in each worker."""
    if sys.platform == "linux":
        config.pluginmanager.register(Watch(config, grace_s), "leftovers")


class Watch:
    """What pytest calls, in one process of its run."""

    def __init__(self, config: pytest.Config, grace_s: float) -> None:
        self.grace_s = grace_s
        self.left: list[str] = []
        worker = getattr(config, "workerinput", None)
        own = worker["workerid"] if worker else f"{os.getpid()}-{uuid.uuid4().hex}"
        above = os.environ.get(guard.MARK)
        self.name = f"{above}/{own}" if above else own
        self.output: dict[str, Any] | None = getattr(config, "workeroutput", None)
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # Its own session: a signal to the process group of pytest does not reach it.
        self.guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), self.name],
            env={name: value for name, value in os.environ.items() if name != guard.MARK},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.environ[guard.MARK] = self.name

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """End what a test has left running, fixtures included; it has failed then."""
        try:
            result = yield
        finally:
            left = self._ended(self._below)
        if left:
            pytest.fail(f"left running by {item.nodeid}: {'; '.join(left)}", pytrace=False)
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a worker has found at its end."""
        self.left += getattr(node, "workeroutput", {}).get("left", [])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Prove that nothing is left: below this process, and of the whole run where this is its first process."""
        self.left += self._ended(self._below)
        self.left += self._ended(self._of_this_run)
        if self.output is not None:
            self.output["left"] = self.left
        elif self.left and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Name what was left."""
        for line in self.left:
            terminalreporter.write_line(f"left running when the tests had ended, and killed: {line}", red=True)

    def pytest_unconfigure(self) -> None:
        """End the guard: there is nothing left to be guarded."""
        self.guard.kill()
        self.guard.wait()

    def _of_this_run(self) -> dict[int, str]:
        """Return what carries the run's mark, wherever it runs, with command lines."""
        found = guard.marked(self.name)
        return {pid: words for pid, words in found.items() if not any(name in words for name in OF_PYTHON)}

    def _below(self) -> dict[int, str]:
        """Return what runs below this process, with command lines."""
        children = {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}
        if children == {str(self.guard.pid)}:
            return {}  # without a look at every process of the machine: this is asked after each test
        found = {}
        for process in psutil.Process().children(recursive=True):
            try:
                words = " ".join(process.cmdline())
                runs = process.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                continue
            if runs and process.pid != self.guard.pid and not any(name in words for name in OF_PYTHON):
                found[process.pid] = words
        return found

    def _ended(self, find: Callable[[], dict[int, str]]) -> list[str]:
        """Wait for processes to end, then kill them; return those that had to be killed."""
        deadline = time.monotonic() + self.grace_s
        while (left := find()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        killed = left
        while left:  # and what they start meanwhile
            for pid in left:
                guard.kill(pid)
            time.sleep(POLL_S)
            left = find()
        return [f"{words} (process {pid})" for pid, words in killed.items()]
