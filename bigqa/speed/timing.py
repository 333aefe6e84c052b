"""How long something takes when nothing else runs. In: short pieces of work. Out: seconds of each, and how busy it was.

Other work on the machine takes a core away for some milliseconds at a time, which makes a long piece slower and a short
one either much slower or not at all. The kernel tells which: it counts how long each thread has waited for a core
(`/proc/PID/task/TID/schedstat`). So pieces are short, take turns, and only those count in which no thread had to wait.
Where the kernel does not tell, all count.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

TASKS = Path("/proc/self/task")
WAITED_S = 5e-5
"""Longest wait for a core, of all threads together, in a piece that counts as undisturbed."""
BURST_S, CALLS = 0.01, 10
"""Of one kind, before the next one's turn: so long, or so many calls."""
ENOUGH, LONGER, LONGEST_S = 3, 8, 12.0
"""Undisturbed pieces of each kind that are wanted; how many times as long they are looked for, and how long at most."""


@dataclass(frozen=True)
class Timed:
    """What pieces took."""

    seconds: dict[str, float]
    disturbed: float
    """Share of all pieces in which a thread waited for a core."""


def undisturbed(pieces: Mapping[str, Callable[[], object]], seconds: float) -> Timed:
    """Run the pieces in turn, for so many seconds each, and for longer where other work leaves none undisturbed.

    Returns: of each the median of what it took undisturbed; where that was seen less than `ENOUGH` times, the least.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in pieces}
    wanted_s = seconds * len(pieces)
    began = time.perf_counter()
    while not _is_enough(taken, time.perf_counter() - began, wanted_s):
        for name, piece in pieces.items():
            taken[name] += _burst(piece)
    found = {name: _undisturbed_s(of_piece) for name, of_piece in taken.items()}
    waits = [waited > WAITED_S for of_piece in taken.values() for _, waited in of_piece]
    return Timed(found, sum(waits) / len(waits))


def _burst(piece: Callable[[], object]) -> list[tuple[float, float]]:
    """Return of some calls, one after the other, what each took, and how long threads waited for a core meanwhile.

    One after the other, since a core that comes from other work has its caches, its clock and its matrix units still to
    warm up: the first call does not count.
    """
    piece()
    found: list[tuple[float, float]] = []
    began = time.perf_counter()
    while not found or (len(found) < CALLS and time.perf_counter() - began < BURST_S):
        before = waited_s()
        started = time.perf_counter()
        piece()
        found.append((time.perf_counter() - started, waited_s() - before))
    return found


def waited_s() -> float:
    """Return how long all threads of this process have waited for a core so far; zero where the kernel does not tell.

    Source: https://docs.kernel.org/scheduler/sched-stats.html
    """
    waited = 0
    with contextlib.suppress(OSError):
        for task in TASKS.iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has just ended
                waited += int((task / "schedstat").read_text().split()[1])
    return waited / 1e9


def _is_enough(taken: Mapping[str, list[tuple[float, float]]], passed_s: float, wanted_s: float) -> bool:
    if min(map(len, taken.values())) < ENOUGH or passed_s < wanted_s:
        return False
    quiet = min(sum(waited <= WAITED_S for _, waited in of_piece) for of_piece in taken.values())
    return quiet >= ENOUGH or passed_s >= min(LONGER * wanted_s, wanted_s + LONGEST_S)


def _undisturbed_s(taken: list[tuple[float, float]]) -> float:
    quiet = [seconds for seconds, waited in taken if waited <= WAITED_S]
    return statistics.median(quiet) if len(quiet) >= ENOUGH else min(seconds for seconds, _ in taken)
