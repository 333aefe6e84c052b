"""The errors a person can mend. The command line prints one as a single line and exits with its code.

In: what went wrong, where (file, id), and what to do. Out: never a traceback, unless BIGQA_DEBUG=1.
"""


class BigqaError(Exception):
    """A problem in what was given (file, model, machine): one line that says what, where and what to do."""

    exit_code = 1
    told: bool | None = None
    """Of a run of several processes: whether another one has told this; none: the first of them tells it."""


class UsageError(BigqaError):
    """The command itself is wrong: an unknown option value, or options that exclude each other."""

    exit_code = 2


LONGEST = 200


def in_a_line(error: BaseException) -> str:
    """Return what an error of somebody else's code says, in a line that is not too long."""
    lines = str(error).strip().splitlines()
    text = " ".join((lines[0] if lines else type(error).__name__).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
