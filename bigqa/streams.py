"""Standard streams that end no run: closed from the start, of a narrow encoding, or gone in the middle.

In: the streams of the process. Out: the same, but a character that the encoding lacks is spelled out, and what a closed
pipe or a terminal that hung up cannot take is dropped.
"""

import codecs
import errno
import io
import os
import sys
from typing import Any

GONE = (errno.EPIPE, errno.EIO)
"""What writing says when nobody reads any more: a pipe's end was closed, a terminal hung up."""
SPELLED = {"·": "-", "…": "...", "—": "-", "–": "-", "×": "x", "≥": ">=", "≤": "<=", "“": '"', "”": '"', "’": "'"}
SPELL_OUT = "bigqa-spell-out"
"""The error handler's name: as Python's own `backslashreplace`, with plain signs for those that bigqa writes itself."""


def secure() -> None:
    """Make the streams of this process, and those that its children inherit, such that none of them ends a run."""
    _open_closed()
    codecs.register_error(SPELL_OUT, _spell_out)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and not isinstance(getattr(stream.buffer, "raw", None), _Lasting):
            setattr(sys, name, _lasting(stream))


class _Lasting(io.FileIO):
    """A stream's file that goes on as /dev/null when its reader is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in GONE:
                raise
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, self.fileno())  # for libraries in C and for children as well
        os.close(sink)
        return len(data)


def _lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    file = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        file, encoding=stream.encoding, errors=SPELL_OUT, line_buffering=stream.line_buffering or stream.isatty()
    )


def _open_closed() -> None:
    """Open /dev/null where a stream is closed: its number would be that of the next file that is opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - it stays
            setattr(sys, name, stream)


def _spell_out(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    known = all(character in SPELLED for character in text)
    return "".join(map(SPELLED.__getitem__, text)) if known else codecs.backslashreplace_errors(error)[0], error.end
