"""Everything that one run of training needs, put together by `bigqa.run`. In: its parts. Out: order, steps, batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigqa.engine.loop.beside import WrittenBeside
from bigqa.engine.loop.evaluation import Evaluation
from bigqa.engine.loop.feed import Feed
from bigqa.engine.loop.order import DataOrder
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.step import Parts
from bigqa.engine.loop.stop import StopRequest
from bigqa.engine.processes import Processes
from bigqa.settings import Settings


@dataclass(kw_only=True)
class Training:
    """Everything that a run needs."""

    settings: Settings
    micro_batch: int
    processes: Processes
    parts: Parts
    windows: Any
    """Features, as `bigqa.tasks.rows.Rows`: memory-mapped."""
    lengths: Sequence[int]
    """Tokens of each window."""
    packs: bool
    """Whether windows are put end to end; else they are padded to the longest."""
    recorder: Silent
    stop: StopRequest
    plan: Mapping[str, Any] = field(default_factory=dict)
    """How it is trained, as checkpoints say it to whoever looks at them."""
    weights: Sequence[int] | None = None
    """What each window counts in the mean loss of a step; none: all alike."""
    evaluation: Evaluation | None = None
    """Scores as the run trains; none: at its end alone."""
    owes: bool = False
    """Whether a checkpoint could not be written, since the disk was away or full."""
    beside: WrittenBeside | None = None
    """Writes checkpoints while the steps go on; none: the steps wait, as where the cores that write are those that
    train."""
    saves: bool = True
    """Whether checkpoints are written: a benchmark's run leaves nothing behind."""

    @property
    def order(self) -> DataOrder:
        """The data order of the run."""
        settings = self.settings
        return DataOrder(num_windows=len(self.lengths), global_batch=settings.global_batch, seed=settings.seed)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.order.num_steps(self.settings.epochs, self.settings.max_steps)

    def feed(self) -> Feed:
        """Return this process's batches."""
        return Feed(
            self.order,
            self.windows,
            self.lengths,
            self.parts.task,
            tokens=self.micro_batch * self.settings.seq_len,
            packs=self.packs,
            device=self.processes.device,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )
