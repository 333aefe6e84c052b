"""What the engine knows of a task: nothing but this protocol.

In: a model and a padded batch. Out: a loss. One file in `bigqa/tasks/` per task.
"""

from typing import Any, Protocol

from torch import Tensor, nn

Row = dict[str, Any]
Batch = dict[str, Tensor]


class Task(Protocol):
    """A task as the trainer sees it. B: windows in a batch. S: tokens of the longest of them."""

    def collate(self, rows: list[Row]) -> Batch:
        """Pad rows of features to the longest of them."""
        ...

    def pack(self, rows: list[Row]) -> Batch:
        """Put rows of features end to end, without padding."""
        ...

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over windows of each window's loss, in fp32.

        Shapes: a scalar. The sum, not the mean: only the trainer knows how many windows one step has.
        """
        ...


class SpanTask(Protocol):
    """The part of a task that inference needs."""

    def collate(self, rows: list[Row]) -> Batch:
        """Pad rows of features."""
        ...

    def pack(self, rows: list[Row]) -> Batch:
        """Put rows of features end to end."""
        ...

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return start and end logits, [B, S] each."""
        ...


class TrainedTask(Task, SpanTask, Protocol):
    """What is trained and then asked."""
