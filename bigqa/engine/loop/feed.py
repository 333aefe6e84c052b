"""The micro-batches of each step, made while the step before computes. In: data order, features. Out: batches.

Which windows a step trains on follows from (seed, step) alone. A micro-batch holds as many windows as its tokens have
room for: full ones fill it to the same size, shorter ones are more.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch

from bigqa.engine.attention.packing import fill, split_padded
from bigqa.engine.loop.order import DataOrder, share_of_process
from bigqa.engine.loop.staging import Staging
from bigqa.engine.threads import thread_of
from bigqa.tasks.base import Batch, Task


class Feed:
    """One process's part of a run's data."""

    def __init__(
        self,
        order: DataOrder,
        windows: Any,
        lengths: Sequence[int],
        task: Task,
        *,
        tokens: int,
        packs: bool,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order = order
        self.windows = windows
        self._check_whole = getattr(windows, "check_whole", None)
        self.lengths = lengths
        self.task = task
        self.tokens = tokens
        """Of a micro-batch, padding included where there is some."""
        self.packs = packs
        self.device = device
        self._staging = Staging(device) if device.type == "cuda" else None
        self.rank, self.world_size = rank, world_size
        self._ahead: tuple[int, Future[list[Batch]]] | None = None
        self._worker = thread_of(device, "bigqa-feed")

    def take(self, step: int) -> list[Batch]:
        """Return a step's micro-batches on the device, and begin with the next step's."""
        made = self._ahead[1] if self._ahead is not None and self._ahead[0] == step else self._begin(step)
        batches = made.result()
        if self._staging is not None:
            batches = self._staging.send(step, batches)
        self._ahead = (step + 1, self._begin(step + 1))
        return batches

    def close(self) -> None:
        """Stop making batches."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int) -> Future[list[Batch]]:
        return self._worker.submit(self._make, step)

    def _make(self, step: int) -> list[Batch]:
        positions = self.order.batch(step)
        parts = self.parts(positions)
        batches = [self._batch([positions[index] for index in part]) for part in parts[self.rank]]
        # Every process must run as many backward passes, or the others wait for its gradients for ever.
        for _ in range(max(map(len, parts)) - len(batches)):
            batches.insert(0, self._batch([positions[0]]) | {"weight": torch.zeros(())})
        return batches if self._staging is None else self._staging.lay(step, batches)

    def parts(self, positions: list[int]) -> list[list[list[int]]]:
        """Return process -> micro-batches -> indices into `positions`."""
        lengths = [self.lengths[position] for position in positions]
        cut = fill if self.packs else split_padded
        found = []
        for rank in range(self.world_size):
            mine = share_of_process(lengths, rank, self.world_size)
            pieces = cut([lengths[index] for index in mine], self.tokens) if mine else []
            found.append([[mine[index] for index in piece] for piece in pieces])
        return found

    def _batch(self, positions: list[int]) -> Batch:
        columns = self.windows[positions]
        rows = [{name: values[index] for name, values in columns.items()} for index in range(len(positions))]
        batch = self.task.pack(rows) if self.packs else self.task.collate(rows)
        if self._check_whole is not None:
            self._check_whole()  # after they were read
        return batch
