"""Stopping a run in good order. In: a signal, or a wish in the run folder. Out: a question asked after each step.

A stop is asked for once and obeyed after the step in progress, so that what is saved is whole. A file in the folder
asks for it too, from whatever machine, and so do the launcher's death and the end of the run's time. In a program of
ours signals come by way of `bigqa.interrupts`; in another, whose main thread trains, they are taken here.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from bigqa import interrupts
from bigqa.engine.loop.deadline import TIME_IS_UP, Deadline

PARENT_VARIABLE = "BIGQA_LAUNCHER_PID"
STOP_FILE = ".stop-requested"
ENDED_FILE = ".ended"
"""Holds the exit code of the first process that ended of itself; one that was killed leaves none."""
LATE_S = 10.0
"""After a stop was asked for: what is whole is saved then, though the step in progress is not over."""
LOOK_S = 1.0
"""Between two looks into the folder, which may lie on a slow disk."""


def tell_end(folder: Path, code: int) -> bool:
    """Leave word of how this process ends; return whether it is the first of its run."""
    try:
        with (folder / ENDED_FILE).open("x", encoding="utf-8") as file:
            file.write(str(code))
    except OSError:
        return False
    return True


class StopRequest:
    """Listens for the wish to stop."""

    def __init__(self, folder: Path) -> None:
        self.number: int | None = None
        """The signal that asked for it."""
        self.obeyed = False
        """Whether the loop has saved for it."""
        self.late: Callable[[], None] | None = None
        """What saves beside a step that is not over in time; see `LATE_S`."""
        self.deadline = Deadline.of_environment()
        self._file = folder / STOP_FILE
        self._looked, self._found = -LOOK_S, False
        self._parent = int(os.environ.get(PARENT_VARIABLE, "0"))
        if not interrupts.listens() and threading.current_thread() is threading.main_thread():
            for number in interrupts.SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:
                    signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C means: at once. SIGTERM comes twice where a scheduler and a launcher both send it.
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.take(number)

    def take(self, number: int) -> None:
        """Take a signal's wish; from any thread."""
        self.number = self.number or number
        if self.late is not None:
            timer = threading.Timer(LATE_S, self.late)
            timer.daemon = True
            timer.start()

    def asked(self, **ahead: int) -> bool:
        """Say whether the run should stop now; `ahead`: what it would do before it asks again (see `Deadline`)."""
        by_clock = self.deadline.is_near(**ahead)
        return self.number is not None or by_clock or self._is_in_folder() or self._launcher_is_gone()

    def clear(self) -> None:
        """Forget a stop that was obeyed, so that the run can go on later."""
        self._file.unlink(missing_ok=True)

    @property
    def exit_code(self) -> int:
        """Return the code that a run ends with which was stopped."""
        if self.number is None and self.deadline.at is not None:
            return TIME_IS_UP
        return interrupts.code_of(self.number or signal.SIGINT)

    def _is_in_folder(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked, self._found = now, os.path.exists(self._file)  # false, too, where the disk is gone
        return self._found

    def _launcher_is_gone(self) -> bool:
        if not self._parent:
            return False
        try:
            os.kill(self._parent, 0)
        except ProcessLookupError:
            return True
        return False
