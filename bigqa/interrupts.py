"""SIGINT, SIGTERM and SIGHUP in a program of ours. In: signals. Out: a word, an exit code, and nothing left behind.

A thread takes them. Python's own handlers run in the main thread between two of its operations, and that may be within
a library for minutes: waiting for another process, tokenizing, importing. So a program ends as soon as it is told to,
unless someone has said that there is something to save (`taken_by`); a second Ctrl-C ends it whatever it does. What is
written aside (`bigqa.files`) goes with it, and what has to be changed at once is changed (`undivided`).
A program that others import (`bigqa.fine_tune`) does not listen: signals are its caller's.
"""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bigqa.language import shown, tr

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_S = 1.0
"""Between two looks at what sends no signal (`look`)."""
UNDIVIDED_S = 10.0
"""Longest wait for what is being changed at once."""

temporaries: set[Path] = set()
"""Files and folders that are being written aside."""
at_last: list[Callable[[], None]] = []
"""What is done before a program leaves, the latest first."""
looks: list[Callable[[], None]] = []
"""What is looked at about every second."""
_undivided = threading.RLock()


class _Program:
    listens = False
    first: int | None = None
    """The first signal that came."""
    word: str = tr("interrupted")
    take: Callable[[int], None] | None = None
    raises = was_raised = False


def listen() -> None:
    """Take signals from now on; to be called first, by the main thread of a program. What is ignored stays ignored."""
    if _Program.listens or threading.current_thread() is not threading.main_thread():
        return
    _Program.listens = True
    reader, writer = map(_above_streams, os.pipe())
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _in_main_thread)
    os.register_at_fork(after_in_child=_let_go)
    threading.Thread(target=_listen, args=(reader,), name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a launcher starts a program with them held back


def listens() -> bool:
    """Whether signals come here."""
    return _Program.listens


def first() -> int | None:
    """Return the first signal that came, if any has."""
    return _Program.first


def was_raised() -> bool:
    """Whether a signal has been raised in the main thread."""
    return _Program.was_raised


def say_when_left(word: str) -> None:
    """Set what is said when a signal ends the program from now on."""
    _Program.word = word


@contextlib.contextmanager
def taken_by(take: Callable[[int], None]) -> Iterator[None]:
    """Hand the first signal to a function, on the thread that listens, instead of ending the program."""
    before, _Program.take = _Program.take, take
    try:
        yield
    finally:
        _Program.take = before


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread instead: for what ends its own processes on the way out."""
    _Program.raises = True
    try:
        yield
    finally:
        _Program.raises = _Program.was_raised  # then it is on its way out


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Hold around a change that no signal may come between."""
    with _undivided:
        yield


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back from what is started meanwhile, until it listens itself: none is lost, and none kills."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(word: str, code: int) -> NoReturn:
    """End the program from whatever thread: with a word, from the first process of a run, and nothing half-written."""
    whole = _undivided.acquire(timeout=UNDIVIDED_S)
    for path in [*temporaries] if whole else ():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for last in reversed([*at_last]):
        with contextlib.suppress(Exception):
            last()
    if os.environ.get("RANK", "0") == "0" and word:
        # A bar of the screen hides the cursor.
        clean = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
        with contextlib.suppress(OSError):
            os.write(2, f"{clean}bigqa: {shown(word)}\n".encode(getattr(sys.stderr, "encoding", None) or "utf-8"))
    os._exit(code)


def code_of(number: int) -> int:
    """Return the exit code of what a signal has ended."""
    return 128 + number


def _above_streams(file: int) -> int:
    """Return the same open file under a number that is no standard stream's, of which one may be closed."""
    if file > 2:
        return file
    above = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(file)
    return above


def _listen(reader: int) -> None:
    while True:
        ready, _, _ = select.select([reader], [], [], LOOK_S)
        for number in os.read(reader, 64) if ready else b"":
            if number in SIGNALS:
                with contextlib.suppress(Exception):  # this thread has to live
                    receive(number)
        for look in [*looks]:
            look()


def receive(number: int) -> None:
    """Do what a signal asks for; from whatever thread."""
    again, program = _Program.first is not None, _Program
    program.first = program.first or number
    if program.raises:
        return  # the main thread raises
    if not again and program.take is not None:
        program.take(number)
    elif not again:
        leave(program.word, code_of(number))
    elif number == signal.SIGINT:  # SIGTERM comes twice where a scheduler and a launcher both send it
        leave(tr("stopped at once") if program.take is not None else program.word, code_of(program.first))


def _in_main_thread(number: int, frame: FrameType | None) -> None:
    if _Program.raises:
        _Program.was_raised, _Program.first = True, _Program.first or number
        raise KeyboardInterrupt


def _let_go() -> None:
    """Leave a fork's signals to their defaults: they are not this program's."""
    _Program.listens = False
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) is _in_main_thread:
                signal.signal(number, signal.SIG_DFL)
