"""bigqa as a person starts it. In: words. Out: what was printed, and the exit code.

`bigqa` starts a process: what a person sees, libraries' messages included, for the price of importing torch again.
`here` runs the same command in the process of the tests, for all that is known when it ends.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from unittest.mock import patch

import psutil

from bigqa import cli, console
from bigqa.console import DEBUG_VARIABLE
from bigqa.engine.loop.stop import PARENT_VARIABLE
from bigqa.train import main as train_main

LIMIT_S = 1800.0
"""Against hanging alone: on a machine that is busy with other things, a command may take minutes."""
TRAIN = Path(console.__file__).parent / "train.py"
Done = subprocess.CompletedProcess[str]


def run(command: Sequence[str | Path], cwd: Path | None = None, **environment: str) -> Done:
    """Run a command to its end; what it started, `leftovers` ends where it does not do so itself."""
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != DEBUG_VARIABLE} | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def bigqa(*words: str | Path, cwd: Path | None = None, **environment: str) -> Done:
    """Run `bigqa WORDS` in a process of its own."""
    return run([sys.executable, "-m", "bigqa.cli", *words], cwd, **environment)


def here(*words: str | Path) -> Done:
    """Run `bigqa WORDS` in this process."""
    return _ended_here(lambda: console.command(cli.app), ["bigqa", *map(str, words)])


def train_here(*words: str | Path) -> Done:
    """Run `bigqa/train.py WORDS` in this process, as a launcher does in another."""
    with patch.dict(os.environ, {PARENT_VARIABLE: str(os.getpid())}):  # else it goes on in another program by itself
        return _ended_here(train_main, [str(TRAIN), *map(str, words)])


def until(condition: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait for something that a process is about to do, which must not end before."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process is None or process.poll() is None, "ended before"
        assert time.monotonic() < deadline, "it did not come to it"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Say whether a process is there and has not ended; until its last thread has, its files are open and locked."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
    except psutil.NoSuchProcess:
        return False


class _Exit(BaseException):
    """In the place of `os._exit`, by which an error ends a command at once."""


def _ended_here(function: Callable[[], None], words: list[str]) -> Done:
    with _as_a_process(words) as (out, err):
        code: object = 0
        try:
            function()
        except SystemExit as end:
            code = end.code or 0
        except _Exit as end:
            code = end.args[0]
    assert isinstance(code, int)
    return Done(words, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_a_process(words: list[str]) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Lend this process a command's words and streams; what it does to signals and variables is undone."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def leave(code: int) -> NoReturn:
        raise _Exit(code)

    try:
        with (
            patch.object(sys, "argv", words),
            # Not in `os` itself: forks of this process end by it.
            patch.object(console, "os", SimpleNamespace(**vars(os) | {"_exit": leave})),
            patch.dict(os.environ, BIGQA_WORKERS="1"),  # forks would keep for themselves what they trace
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            yield out, err
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
