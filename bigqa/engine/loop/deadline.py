"""When a run's time is up. In: `--until`, and how long steps, saves and scores take here. Out: whether to save now.

The time is one of the clock, kept in the environment: a run that steps down, or goes on after a worker was killed,
keeps the end that it was given, and every process of it knows the same one. What is ahead is reckoned from the longest
of the last few: the state has to lie in the folder before the machine is taken away, be the disk as slow as it may.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

UNTIL_VARIABLE = "BIGQA_UNTIL"
"""Seconds since the epoch."""
TIME_IS_UP = 124
"""The exit code of a run that saved because its time was up, as timeout(1) has it: what comes after must not follow."""
LAST = 16
"""Durations of each kind that are looked at."""
MARGIN = 1.25
RESERVE_S = 1.0
UNKNOWN_BYTES_PER_S = 3e7
"""Of a folder that nothing was saved in yet: one that is synchronised over a network."""


def give(at: float | None) -> None:
    """Give this process, and those that it starts, an end of their time, in seconds since the epoch; none: no end."""
    os.environ.pop(UNTIL_VARIABLE, None)
    if at is not None:
        os.environ[UNTIL_VARIABLE] = str(at)


def give_if_none(seconds: float | None) -> None:
    """Count the time from now, where no launcher does already."""
    if seconds is not None and UNTIL_VARIABLE not in os.environ:
        give(time.time() + seconds)


class Deadline:
    """The end of a run's time. `at`: seconds since the epoch; none: there is no end."""

    def __init__(self, at: float | None, clock: Callable[[], float] = time.time) -> None:
        self.at, self._clock = at, clock
        self._took: dict[str, deque[float]] = {}
        self._guess: dict[str, float] = {}

    @classmethod
    def of_environment(cls) -> "Deadline":
        """Return the end that this process was given."""
        text = os.environ.get(UNTIL_VARIABLE)
        return cls(float(text) if text else None)

    def expect_to_save(self, size_bytes: int) -> None:
        """Reckon with a slow disk until the first save has told; but with no more than a tenth of what is left."""
        if self.at is not None:
            left_s = max(0.0, self.at - self._clock())
            self._guess["save"] = min(size_bytes / UNKNOWN_BYTES_PER_S, left_s / 10)

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Take how long a step, a save or scores took."""
        started = self._clock()
        yield
        self._took.setdefault(kind, deque(maxlen=LAST)).append(self._clock() - started)

    def ahead_s(self, **counts: int) -> float:
        """Return how long so many of each kind may take."""
        return MARGIN * sum(count * self._longest(kind) for kind, count in counts.items())

    def is_near(self, **counts: int) -> bool:
        """Whether so many of each kind, and a save, would end too late."""
        return self.at is not None and self._clock() + self.ahead_s(save=1, **counts) + RESERVE_S >= self.at

    @contextlib.contextmanager
    def watched(self, late: Callable[[], None], every_s: float = 0.5) -> Iterator[None]:
        """Save beside a step, or scores, that take longer than any before: the time is up though they are not over."""
        if self.at is None:
            yield
            return
        over = threading.Event()

        def watch() -> None:
            while not over.wait(every_s):
                if self.is_near():
                    late()
                    return

        threading.Thread(target=watch, name="deadline", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _longest(self, kind: str) -> float:
        return max(self._took.get(kind, ()), default=self._guess.get(kind, 0.0))
