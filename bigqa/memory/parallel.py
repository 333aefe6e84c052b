"""What data-parallel training without DeepSpeed keeps beside a single process's. In: parameters. Out: blocks, in turn.

Sources: torch, `distributed.py`, `reducer.cpp`, `ProcessGroupNCCL.cpp`. The first process's weights are sent to the
others in flat copies, two at a time. Gradients are copied into buckets, which are averaged and copied back: all into a
single one in the first step, which is there from the start; before the second, buckets are made anew, in the order in
which gradients came.

What a collective of NCCL worked on is held until NCCL's watchdog has seen that it is done, which it looks for every
100 ms. Whether the first step's bucket is gone when the others are made, and when, hangs on that: on a null GPU on how
long a step takes there, on a real one on how far the host is ahead of it. So there are two ends. At least: it goes
first. At most: it stays all through the second step. The flat copies are held in the same way, which shows in what is
reserved alone. A run may be at either end or between them, and a run that is to fit must fit at the most. From the
third step on there is the least, beside what has been reserved by then.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bigqa.memory.allocator import MIB

FIRST_BYTES, OTHER_BYTES = MIB, 25 * MIB
"""At which a bucket is full (`distributed.py`: `_DEFAULT_FIRST_BUCKET_BYTES`, `bucket_cap_mb`)."""
SENT_BYTES = 250 * MIB
"""Of a flat copy of weights (`distributed.py`: `broadcast_bucket_size`)."""
SENT_AT_ONCE = 2
"""`comm.cpp`, `broadcast_coalesced`: `max_in_flight`."""


@dataclass(frozen=True)
class Averaging:
    """Bytes of blocks."""

    sent: tuple[int, ...]
    """Flat copies of the weights."""
    first: int
    """The first step's bucket."""
    rebuilt: tuple[int, ...]
    """Those of every later step."""

    @property
    def ends(self) -> tuple[int, int]:
        """What is there at least and at most in a step after the first, without what blocks are rounded to."""
        return sum(self.rebuilt), sum(self.rebuilt) + self.first


def averaging_of(weights: Sequence[int], gradients: Sequence[int]) -> Averaging:
    """Return the blocks for the bytes of all weights, and of the gradients, both in the model's order."""
    return Averaging(
        sent=tuple(_filled(weights, SENT_BYTES, SENT_BYTES)),
        first=sum(gradients),
        rebuilt=tuple(buckets(reversed(gradients))),
    )


def with_buckets(by_category: Mapping[str, int], averaging: Averaging) -> dict[str, int]:
    """Return what is held at the peak by category, buckets among the gradients."""
    return {**by_category, "gradients": by_category["gradients"] + averaging.ends[1]}


def buckets(gradients: Iterable[int]) -> list[int]:
    """Return the bytes of each bucket, for gradients in the order in which they come."""
    return _filled(gradients, FIRST_BYTES, OTHER_BYTES)


def _filled(sizes: Iterable[int], first: int, other: int) -> list[int]:
    """Fill buckets until each holds as much. Source: `compute_bucket_assignment_by_size`."""
    found, held, full = [], 0, first
    for size in sizes:
        held += size
        if held >= full:
            found.append(held)
            held, full = 0, other
    return [*found, held] if held else found
