"""`bigqa train` and its workers as forks of a process that has imported all. In: words. Out: exit codes, and output.

What runs is bigqa's own: its command line, its launcher, its workers, each in a process and a session of its own, with
the streams, signal masks, environment and open files that they are given. Only exec is left out, which would import
torch anew for seconds. What a fork finds of its parent's state that a new program would not have is undone.
"""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from bigqa import cli, interrupts, lock, train
from bigqa.console import as_program, command
from bigqa.engine.loop.stop import PARENT_VARIABLE
from bigqa.interrupts import held_back
from bigqa.language import tr
from bigqa.lock import HANDED_ON
from bigqa.nullgpu.environment import on_null_gpu
from bigqa.run import workers

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "BIGQA_THREADS", "BIGQA_WORKERS", "HF_HUB_OFFLINE"), "1")
CAPABILITY = (8, 0)
LOOK_S = 0.01
PR_SET_CHILD_SUBREAPER = 36
Prepare = Callable[[], None]


def import_all() -> None:
    """Import what runs import, and make what all of them make alike."""
    os.environ.update(ENVIRONMENT)
    import cpuinfo
    import torch.fx.experimental.symbolic_shapes
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from benchmarks.null_worker import import_libraries

    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)  # a second for each of DeepSpeed's optimizers
    if on_null_gpu():
        import_libraries(CAPABILITY)
    import bitsandbytes  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import tensorboard.summary.writer.record_writer  # noqa: F401

    import bigqa.cli.commands
    import bigqa.engine.optim.eight_bit
    import bigqa.run.again
    import bigqa.run.fine_tuning  # noqa: F401

    get_checkpoint_conversion_mapping("bert")
    torch.set_num_threads(1)


def adopt_orphans() -> None:
    """Have what a killed launcher leaves behind be waited for by this process."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Forked:
    """A process that was forked, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return how it ended, if it has."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(work: Callable[[], Any]) -> int:
    """Return the process that does the work; it ends with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            with contextlib.suppress(BaseException):
                sys.excepthook(type(error), error, error.__traceback__)
        os._exit(70)
    return pid


class Said:
    """What processes print, through a pipe: no limit of files and no full disk keeps it back.

    `heard` is called with what comes: by it a rig answers what a run asks of the person before it.
    """

    def __init__(self, heard: Callable[[bytes], None] | None = None) -> None:
        self._heard = heard
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self._parts: list[bytes] = []

    def take(self) -> None:
        """Take what is there."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.reading, 1 << 16):
                self._parts.append(part)
                if self._heard is not None:
                    self._heard(part)

    def text(self) -> str:
        """Return all of it, and let the pipe go."""
        self.take()
        for file in (self.reading, self.writing):
            os.close(file)
        return b"".join(self._parts).decode("utf-8", "replace")


def launched(words: Sequence[str], said: Said, environment: Mapping[str, str], prepare: Prepare) -> int:
    """Start `bigqa train` in a fork; return its number. `prepare`: called in it and in each of its workers."""
    return fork(lambda: _launch(words, said, environment, prepare))


def _launch(words: Sequence[str], said: Said, environment: Mapping[str, str], prepare: Prepare) -> NoReturn:
    os.setsid()
    streams_to(said)
    os.environ.update(environment)
    as_new()
    workers.Workers._start = functools.partialmethod(_start_worker, prepare)  # type: ignore[assignment]
    sys.argv = ["bigqa", "train", *words]
    interrupts.listen()
    interrupts.say_when_left(tr("interrupted before anything was begun: there is nothing to save"))
    prepare()
    as_program(lambda: command(cli.app))


def _start_worker(self: workers.Workers, prepare: Prepare, words: Sequence[str], of_rank: dict[str, str]) -> Forked:
    """Do as `Workers._start` does, without exec."""
    own = {PARENT_VARIABLE: str(os.getpid()), HANDED_ON: str(self.lock.file)}
    environment = {**self.environment, **own, **of_rank}
    with held_back():
        return Forked(fork(lambda: _work(words[1:], environment, prepare)))


def _work(words: Sequence[str], environment: Mapping[str, str], prepare: Prepare) -> NoReturn:
    os.setsid()
    os.environ.update(environment)
    as_new()
    sys.argv = list(words)
    interrupts.listen()
    interrupts.say_when_left(tr("interrupted before the run had begun: there is nothing to save"))
    prepare()
    as_program(train.main)


def as_new() -> None:
    """Undo what a new program would not have of its parent."""
    program = interrupts._Program
    program.listens, program.first, program.take, program.raises = False, None, None, False
    interrupts.temporaries.clear()
    interrupts.at_last.clear()
    interrupts.looks.clear()
    lock._here.clear()
    tempfile.tempdir = None


def streams_to(said: Said) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said.writing, 1)
    os.dup2(said.writing, 2)


def ended(pids: Callable[[], Sequence[int]], limit_s: float, said: Said) -> dict[int, int] | None:
    """Wait for processes that this one has started or adopts; return how each ended. None: not all of them in time."""
    end, codes = time.monotonic() + limit_s, dict[int, int]()
    while True:
        said.take()
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                codes[found[0]] = os.waitstatus_to_exitcode(found[1])
        if not any(lives(pid) for pid in pids()):
            return codes
        if time.monotonic() > end:
            return None
        time.sleep(LOOK_S)


def lives(pid: int) -> bool:
    """Whether there is a process of a number, be it one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(pids: Sequence[int]) -> None:
    """End processes of ours, and what is in their sessions."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == pid:  # as each of ours begins by making itself
                os.killpg(pid, signal.SIGKILL)
