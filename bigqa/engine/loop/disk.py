"""A run folder on a disk that may go away, or fill, and come back. In: what is to be written. Out: it is.

What was learned is in memory as long as the run lasts, so a disk that is away for a while, or has no room until
somebody makes some, does not end it. A folder is away where its config.json is not to be seen: an empty mount point is
a folder as well, and must not be written into.
"""

import contextlib
import errno
import io
import time
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

from bigqa.files import opened_to_add, write_error
from bigqa.language import Text, tr

MARK = "config.json"
"""What every run folder holds from its beginning."""
PASSING = {
    errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV,
    errno.ENXIO, errno.ECONNABORTED, errno.ECONNRESET, errno.EREMOTEIO, errno.ENOENT,
}  # fmt: skip
"""Errors of a disk that was there before; of one that may not be written a person is told."""
FULL = {errno.ENOSPC, errno.EDQUOT}
"""Of one that has no room, which may have some again."""
WAIT_S, LOOK_S = 600.0, 1.0
"""How long the last save waits for the disk, and between two looks at it."""


def is_away(folder: Path) -> bool:
    """Whether a run folder is not to be seen."""
    try:
        return not (folder / MARK).is_file()
    except OSError:
        return True


class Away(Enum):
    """Why nothing can be written for now."""

    GONE = auto()
    FULL = auto()


def passes(error: BaseException | None) -> Away | None:
    """Say whether an error, or what caused it, is of a disk that went away or is full; none: of neither."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    if error is None or error.errno not in PASSING | FULL:
        return None
    return Away.FULL if error.errno in FULL else Away.GONE


def tried(folder: Path, write: Callable[[], object]) -> Away | None:
    """Write, where the folder is there; return why it could not be. What else goes wrong is raised."""
    if is_away(folder):
        return Away.GONE
    try:
        write()
    except Exception as error:
        why = passes(error)
        if why is None:
            raise
        return why
    return None


def waited_for(
    folder: Path, write: Callable[[], object], say: Callable[[str], None], patience_s: float, *, for_room: bool
) -> bool:
    """Write as soon as the folder is there, and has room; return false where it does not come back in time.

    `for_room`: wait for room too. Raises: BigqaError where there is none.
    """
    end, told = time.monotonic() + patience_s, False
    while (why := tried(folder, write)) is not None:
        if why is Away.FULL and (not for_room or time.monotonic() >= end):
            raise write_error(folder, OSError(errno.ENOSPC, "")) from None
        if time.monotonic() >= end:
            return False
        if not told:
            told = True
            say(_waiting(folder, why, patience_s / 60))
        time.sleep(LOOK_S)
    return True


def _waiting(folder: Path, why: Away, minutes: float) -> Text:
    words = {"folder": folder, "minutes": minutes}
    if why is Away.FULL:
        return tr(
            "{folder} is full, and the last step is not saved yet: waiting up to {minutes:.0f} min for room", **words
        )
    return tr("{folder} is away, and the last step is not saved yet: waiting up to {minutes:.0f} min for it", **words)


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
                self._file = io.FileIO(opened_to_add(self.path), "a")
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            self.close()
            if passes(error) is None:
                raise write_error(self.path, error) from error

    def close(self) -> None:
        """Let the file go."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
