"""Memory of one step over time, by category. In: a stream of events. Out: a few hundred points that keep the peak."""

import itertools
from dataclasses import dataclass

import numpy as np

from bigqa.memory.events import BEFORE, CATEGORIES, Stream

ROUNDING = 512


@dataclass(frozen=True)
class Timeline:
    """Live bytes at moments of a step, in order. Every moment is the worst of the events that it stands for."""

    phases: tuple[str, ...]
    """Of each moment."""
    by_category: dict[str, tuple[int, ...]]
    """Category -> bytes at each moment."""

    @property
    def totals(self) -> tuple[int, ...]:
        """Bytes at each moment."""
        return tuple(sum(values) for values in zip(*self.by_category.values(), strict=True))


def timeline_of(stream: Stream, num_points: int = 400) -> Timeline:
    """Return the step's memory at `num_points` moments at most; what is there before the step is the first one's."""
    sizes: dict[int, int] = {}
    changes = np.zeros((len(stream.events), len(CATEGORIES)), np.int64)
    for index, event in enumerate(stream.events):
        column = CATEGORIES.index(stream.categories[event.storage])
        if event.size_bytes:
            sizes[event.storage] = -(-event.size_bytes // ROUNDING) * ROUNDING
            changes[index, column] = sizes[event.storage]
        else:
            changes[index, column] = -sizes.pop(event.storage)
    live = changes.cumsum(axis=0)
    begin = next((i for i, e in enumerate(stream.events) if e.phase not in BEFORE), len(stream.events) - 1)
    edges = np.linspace(begin, len(stream.events), min(num_points, len(stream.events) - begin) + 1).astype(int)
    totals = live.sum(axis=1)
    worst = [a + int(totals[a:b].argmax()) for a, b in itertools.pairwise(edges.tolist())]
    kept = {str(name): tuple(int(live[at, column]) for at in worst) for column, name in enumerate(CATEGORIES)}
    return Timeline(tuple(stream.events[at].phase for at in worst), kept)
