"""Runs carried out, some at a time. In: a source of runs. Out: each begun, looked at, and told to the source.

The first signal asks those that run to save and end, and none is begun after it; a second Ctrl-C ends them at once.
"""

import time
from typing import Protocol

from bigqa import interrupts
from bigqa.runs.member import Member

POLL_S = 0.25


class Source(Protocol):
    """What knows which runs there are to be."""

    def next(self, slot: int) -> Member | None:
        """Return the next run, for one of the places that runs have at a time; none: nothing can be begun now."""
        ...

    def look(self, member: Member) -> None:
        """Take a look at a run that goes on."""
        ...

    def ended(self, member: Member) -> None:
        """Take note of a run that has ended. Raises: BigqaError where the others are not to be begun."""
        ...

    def waits(self) -> bool:
        """Whether there may be more to begin later, though nothing runs here."""
        ...


def carry_out(source: Source, at_once: int) -> None:
    """Carry runs out until there is none left, or until a signal comes."""
    running: dict[int, Member] = {}

    def stop(_: int) -> None:
        for member in [*running.values()]:
            member.stop()

    with interrupts.taken_by(stop):
        try:
            while True:
                if interrupts.first() is None:
                    _begin(source, running, at_once)
                if not running and (interrupts.first() is not None or not source.waits()):
                    break
                time.sleep(POLL_S)
                for slot, member in [*running.items()]:
                    if member.has_ended:
                        del running[slot]
                        source.ended(member)
                    else:
                        source.look(member)
        finally:
            stop(0)
            while any(not member.has_ended for member in running.values()):
                time.sleep(POLL_S)


def _begin(source: Source, running: dict[int, Member], at_once: int) -> None:
    for slot in range(at_once):
        if slot not in running:
            member = source.next(slot)
            if member is None:
                return
            running[slot] = member
            member.start()
            if interrupts.first() is not None:  # it came before this one could be told
                member.stop()
