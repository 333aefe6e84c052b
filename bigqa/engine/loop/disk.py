"""A run folder on a disk that may go away and come back: a drive over a network. In: what is to be written. Out: it is.

What was learned is in memory as long as the run lasts, so a disk that is away for a while does not end it. A folder is
away where its config.json is not to be seen: an empty mount point is a folder as well, and must not be written into.
"""

import contextlib
import errno
import io
import time
from collections.abc import Callable
from pathlib import Path

from bigqa.language import tr

MARK = "config.json"
"""What every run folder holds from its beginning."""
PASSING = {
    errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV,
    errno.ENXIO, errno.ECONNABORTED, errno.ECONNRESET, errno.EREMOTEIO, errno.ENOENT,
}  # fmt: skip
"""Errors of a disk that was there before; of a full one, or one that may not be written, a person is told."""
WAIT_S, LOOK_S = 600.0, 1.0
"""How long the last save waits for the disk, and between two looks at it."""


def is_away(folder: Path) -> bool:
    """Whether a run folder is not to be seen."""
    try:
        return not (folder / MARK).is_file()
    except OSError:
        return True


def passes(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is of a disk that went away."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None and error.errno in PASSING


def tried(folder: Path, write: Callable[[], object]) -> bool:
    """Write, where the folder is there; return whether it was. What else goes wrong is raised."""
    if is_away(folder):
        return False
    try:
        write()
    except Exception as error:
        if passes(error):
            return False
        raise
    return True


def waited_for(folder: Path, write: Callable[[], object], say: Callable[[str], None], patience_s: float) -> bool:
    """Write as soon as the folder is there; return false where it does not come back in time."""
    end, told = time.monotonic() + patience_s, False
    while not tried(folder, write):
        if time.monotonic() >= end:
            return False
        if not told:
            told = True
            say(
                tr(
                    "{folder} is away, and the last step is not saved yet: waiting up to {minutes:.0f} min for it",
                    folder=folder,
                    minutes=patience_s / 60,
                )
            )
        time.sleep(LOOK_S)
    return True


class Appended:
    """A file that is added to. What cannot be written waits, and follows when the disk is there again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = None
        self._waiting = b""

    def line(self, text: str) -> None:
        """Write a line."""
        self.write(text.encode() + b"\n")

    def write(self, content: bytes) -> None:
        """Write what is whole by itself: it is there when this returns; or later."""
        self._waiting += content
        try:
            if self._file is None:
                self._file = io.FileIO(self.path, "a")
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            self.close()
            if not passes(error):
                raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Let the file go."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
