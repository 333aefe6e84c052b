"""The processes of one start of a run on this machine. In: a command. Out: they run, can be told to stop, and end.

Each is started by this process itself, in a session of its own: Ctrl-C reaches this process alone, and how each of them
ended is known from the kernel. Until a worker listens (`bigqa.interrupts`), signals to it are held back, not lost.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigqa.engine.loop.stop import PARENT_VARIABLE
from bigqa.files import opened_to_add
from bigqa.interrupts import held_back
from bigqa.lock import HANDED_ON, Held

LOST_PEER = 76
"""The exit code of a process whose peers are gone: what ended them is the cause (EX_PROTOCOL of sysexits.h)."""
PEERS_S, KILLED_S = 5.0, 30.0
"""After one has failed: until the others are told to stop, and until they are killed."""
POLL_S = 0.05


class Workers:
    """The processes of one start."""

    def __init__(
        self, lock: Held, count: int, output: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.lock, self.count = lock, count
        self.output, self.environment = output, dict(environment or {})
        """A file that takes what they print, instead of this process's streams; and what else they find set."""
        self.told = False
        """Whether they have been told to stop."""
        self._running: list[subprocess.Popen[bytes]] = []
        self._turn = threading.Lock()

    def run(self, command: Sequence[str]) -> int | None:
        """Start them and wait; return how the first of them failed (a signal's number is negative). None: not begun."""
        with self._turn:
            if self.told:
                return None
            started = self._running = [self._start(command, of_rank) for of_rank in self._environments()]
        try:
            return self._wait()
        finally:
            for worker in started:  # and what they may have started
                _kill_group(worker)

    def stop(self) -> None:
        """Tell them to save and end; from any thread. As SIGTERM: a second Ctrl-C is for a person to give."""
        with self._turn:
            self.told = True
            self._ask()

    def kill(self) -> None:
        """End them at once; from any thread."""
        for worker in self._running:
            _kill_group(worker)

    def _ask(self) -> None:
        for worker in self._running:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGTERM)

    def _start(self, command: Sequence[str], of_rank: dict[str, str]) -> "subprocess.Popen[bytes]":
        own = {PARENT_VARIABLE: str(os.getpid()), HANDED_ON: str(self.lock.file)}
        environment = os.environ | self.environment | own | of_rank
        with held_back(), self._streams() as streams:
            return subprocess.Popen(
                command, env=environment, start_new_session=True, pass_fds=[self.lock.file], **streams
            )

    @contextlib.contextmanager
    def _streams(self) -> Iterator[dict[str, Any]]:
        if self.output is None:
            yield {}
            return
        with open(opened_to_add(self.output), "ab") as file:
            yield {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}

    def _environments(self) -> list[dict[str, str]]:
        """Return what tells each process its rank, as torchrun does it."""
        if self.count == 1:
            return [{}]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        alike = {"WORLD_SIZE": str(self.count), "LOCAL_WORLD_SIZE": str(self.count), "MASTER_ADDR": "127.0.0.1"}
        alike |= {"MASTER_PORT": port, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        return [alike | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self.count)]

    def _wait(self) -> int:
        failed: list[int] = []
        since, asked = float("inf"), False
        while self._running:
            for worker in [*self._running]:
                code = worker.poll()
                if code is None:
                    continue
                self._running.remove(worker)
                if code:
                    failed.append(code)
                    since = min(since, time.monotonic())
            waited = time.monotonic() - since
            if waited > KILLED_S:
                self.kill()
            elif waited > PEERS_S and not asked:
                asked = True
                self._ask()
            time.sleep(POLL_S)
        return next((code for code in failed if code != LOST_PEER), failed[0] if failed else 0)


def _kill_group(worker: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
