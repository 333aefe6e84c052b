"""Stopping a run in good order. In: SIGINT, SIGTERM, or the launcher's wish. Out: a question asked after each step.

A stop is asked for once and obeyed after the step in progress, so that what is saved is whole. A launcher that starts
the workers in a session of their own leaves a file to ask for it, and its own death asks as well.
"""

import os
import signal
from pathlib import Path
from types import FrameType

PARENT_VARIABLE = "BIGQA_LAUNCHER_PID"
STOP_FILE = ".stop-requested"
ENDED_FILE = ".ended"
"""Holds the exit code of the first process that ended of itself; one that was killed leaves none."""


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
        self._file = folder / STOP_FILE
        self._asked = False
        self._parent = int(os.environ.get(PARENT_VARIABLE, "0"))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C means: at once. SIGTERM comes twice where a scheduler and a launcher both send it.
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def asked(self) -> bool:
        """Say whether the run should stop now."""
        return self._asked or self._file.exists() or self._launcher_is_gone()

    def clear(self) -> None:
        """Forget a stop that was obeyed, so that the run can go on later."""
        self._file.unlink(missing_ok=True)

    def _launcher_is_gone(self) -> bool:
        if not self._parent:
            return False
        try:
            os.kill(self._parent, 0)
        except ProcessLookupError:
            return True
        return False
