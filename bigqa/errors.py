"""The errors a person can mend. The command line prints one as a single line and exits with its code.

In: what went wrong, where (file, id), and what to do. Out: never a traceback, unless BIGQA_DEBUG=1.
"""

import contextlib
import unicodedata
from collections.abc import Iterator

from bigqa.language import put, shown

LONGEST_WORD, LONGEST_LINE = 300, 900
"""Characters of one word, and of all: more is a value of the input, not what is said of it. Paths are let through."""
LACKING = (
    "can't allocate memory",
    "cannot allocate memory",
    "can't start new thread",
    "not enough memory",
    "unable to mmap",
)
"""What Python, torch's CPU allocator and DeepSpeed say of the host's memory by a plain RuntimeError."""
UNSEEN = ("Cc", "Cf", "Cs")
"""Unicode's kinds of characters that show nothing or steer a terminal: controls, formats, halves of pairs."""


def one_line(text: str) -> str:
    """Return what is told of an error as one line, in which a value that it repeats is cut in its middle.

    The end stays: what to do stands there. A character that would not be seen is spelled out.
    """
    words = (_cut(_seen(_cut(word, LONGEST_WORD)), LONGEST_WORD) for word in text.split())
    return _cut(" ".join(words), LONGEST_LINE)


def _seen(word: str) -> str:
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in UNSEEN else c for c in word)


def _cut(text: str, longest: int) -> str:
    end = longest // 4
    return text if len(text) <= longest else f"{text[: longest - end - 3]}...{text[-end:]}"


class BigqaError(Exception):
    """A problem in what was given (file, model, machine): one line that says what, where and what to do."""

    exit_code = 1
    told: bool | None = None
    """Of a run of several processes: whether another one has told this; none: the first of them tells it."""

    def __str__(self) -> str:
        return one_line(super().__str__())

    @property
    def shown(self) -> str:
        """The same line in the language of this process: `str` is English, for logs and JSON."""
        return one_line(shown(self.args[0]) if self.args else "")


class UsageError(BigqaError):
    """The command itself is wrong: an unknown option value, or options that exclude each other."""

    exit_code = 2


LONGEST = 200


def in_a_line(error: BaseException) -> str:
    """Return what an error of somebody else's code says, in a line that is not too long."""
    lines = str(error).strip().splitlines()
    count = 2 if lines and lines[0].endswith(":") else 1  # a heading says nothing by itself
    text = " ".join((" ".join(lines[:count]) or type(error).__name__).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


@contextlib.contextmanager
def as_a_line(what: str) -> Iterator[None]:
    """Tell what a library says of a person's file in one line after `what`, whatever kind of error it raises for it.

    Raises: BigqaError. Memory that runs out stays what it is: a run steps down for it.
    """
    try:
        yield
    except (BigqaError, MemoryError):
        raise
    except BaseException as error:
        # Libraries in Rust raise what is no Exception where they give up on a file.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BigqaError(put("{what}: {problem}", what=what, problem=in_a_line(error))) from error
