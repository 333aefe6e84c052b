"""When ZeRO-3 gathers weights and lets them go. In: modules as they begin and end. Out: gathers and releases.

Source: DeepSpeed 0.19, `runtime/zero/partitioned_param_coordinator.py`, `PartitionedParameterCoordinator`. The first
pass is only recorded; from the second on, weights are fetched ahead and kept where they are soon used again.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Protocol

from bigqa.engine.zero import Buckets
from bigqa.memory.zero.layout import Layout

LONG_AGO = -(10**10)


class Weights(Protocol):
    """What holds the weights."""

    def gather(self, numbers: Sequence[int]) -> None:
        """Begin to make weights whole, in the order of their numbers."""
        ...

    def wait(self, number: int) -> None:
        """Have a weight whole."""
        ...

    def release(self, number: int) -> None:
        """Let go of a whole weight."""
        ...


class Gathering:
    """Follows modules through forward and backward passes."""

    def __init__(self, weights: Weights, layout: Layout, buckets: Buckets, persistent: frozenset[int]) -> None:
        self.weights, self.layout, self.buckets, self.persistent = weights, layout, buckets, persistent
        self.whole: set[int] = set()
        self.on_the_way: set[int] = set()
        self.used_by: dict[int, set[int]] = defaultdict(set)
        self.in_backward: dict[int, None] = {}
        """Modules whose backward pass has begun."""
        self.order: list[int] = []
        """Modules of the recorded pass."""
        self.uses: list[tuple[int, int]] = []
        """Parameters of the recorded pass, and the step of each use."""
        self.recorded = self.recording = False
        self.queue: deque[tuple[int, int]] = deque()
        self.fetched_for: dict[int, int] = {}
        self.step = self.num_live = 0
        self._releases: dict[tuple[int, int], frozenset[int]] = {}

    def begin_pass(self) -> None:
        """`reset_step`."""
        for number in list(self.on_the_way):
            self._have(number)
            self._release(number)
        if self.recording and not self.recorded:
            self.recorded = True
            self.uses = [
                (number, step) for step, module in enumerate(self.order) for number in self.layout.modules[module]
            ]
        self.recording = True
        self.queue = deque(self.uses)
        self.fetched_for = {}
        self.step = self.num_live = 0

    def fetch(self, module: int, *, forward: bool) -> None:
        """`fetch_sub_module`."""
        if not self.recorded:
            self.order.append(module)
        if not forward:
            self.in_backward[module] = None
        numbers = self.layout.modules[module]
        self._gather([one for one in numbers if one not in self.whole and one not in self.on_the_way])
        for number in numbers:
            self.used_by[number].add(module)
            self._have(number)
        if self.recorded:
            self._take_from_queue(numbers)
            self._fetch_ahead()
        self.step += 1

    def release_module(self, module: int, *, forward: bool) -> None:
        """`release_sub_module`."""
        numbers = self.layout.modules[module]
        released = self._releasable(module) if self.recorded else frozenset(numbers)
        if not forward:
            self.in_backward.pop(module, None)
        for number in numbers:
            self.used_by[number].discard(module)
            if number in released:
                self._release(number)

    def end_pass(self) -> None:
        """Release what no hook at the end of a backward pass has: `release_backward_leftovers`."""
        while self.in_backward:
            module, _ = self.in_backward.popitem()
            for number in self.layout.modules[module]:
                self.used_by[number].discard(module)
                if number not in self.persistent:
                    self._release(number)

    def release_all(self) -> None:
        """`release_and_reset_all`."""
        for number in range(len(self.layout.numels)):
            self._have(number)
            self.used_by[number].clear()
            self._release(number)

    def _gather(self, numbers: list[int]) -> None:
        if numbers:
            self.num_live += sum(self.layout.numels[one] for one in numbers)
            self.weights.gather(sorted(numbers))
            self.on_the_way.update(numbers)

    def _have(self, number: int) -> None:
        if number in self.on_the_way:
            self.weights.wait(number)
            self.on_the_way.discard(number)
            self.whole.add(number)

    def _release(self, number: int) -> None:
        if number in self.whole and not self.used_by[number]:
            self.weights.release(number)
            self.whole.discard(number)
            self.num_live -= self.layout.numels[number]

    def _take_from_queue(self, numbers: Sequence[int]) -> None:
        wanted = sum(self.fetched_for.get(one, LONG_AGO) < self.step for one in numbers)
        taken: set[int] = set()
        while self.queue and len(taken) < wanted:
            number, step = self.queue.popleft()
            self.fetched_for[number] = step
            taken.add(number)

    def _fetch_ahead(self) -> None:
        most = min(self.buckets.live - self.num_live, self.buckets.prefetched)
        ahead: dict[int, None] = {}
        size = 0
        while self.queue and size < most:
            number, step = self.queue.popleft()
            is_wanted = number not in self.whole and number not in self.on_the_way and number not in ahead
            self.fetched_for[number] = max(self.fetched_for.get(number, LONG_AGO), step)
            if is_wanted:
                ahead[number] = None
                size += self.layout.numels[number]
        self._gather(list(ahead))

    def _releasable(self, module: int) -> frozenset[int]:
        """`__params_to_release`, which remembers what it said the first time."""
        key = module, self.step
        if key not in self._releases:
            numbers = {one for one in self.layout.modules[module] if one not in self.persistent}
            numbers -= {one for one in numbers if self.fetched_for.get(one, LONG_AGO) > self.step}
            passed = 0
            for later in self.order[self.step :]:
                if passed >= self.buckets.live:
                    break
                for number in self.layout.modules[later]:
                    numbers.discard(number)
                    passed += self.layout.numels[number]
            self._releases[key] = frozenset(numbers)
        return self._releases[key]
