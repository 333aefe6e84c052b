"""Dynamic loss scaling for fp16. In: whether a step's gradients were finite. Out: the scale of the next step's loss.

Small gradients would round to zero in fp16, so the loss is scaled up; a step that overflows is skipped and the scale
halved, and after many good steps it is doubled. The rules and numbers are those of `torch.amp.GradScaler`.
"""

from dataclasses import dataclass

from torch import Tensor

GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0, 0.5, 2000


@dataclass
class LossScaler:
    """The scale, and what a checkpoint must keep of it."""

    scale: float = 65536.0
    good_steps: int = 0
    """Since the scale last changed."""
    skipped: int = 0
    """Steps of the run that changed nothing; the schedule and Adam's bias correction do not count them."""

    def update(self, *, finite: bool) -> None:
        """Take in how a step went."""
        if not finite:
            self.scale, self.good_steps = max(1.0, self.scale * BACKOFF), 0
            self.skipped += 1
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_INTERVAL:
            self.scale, self.good_steps = self.scale * GROWTH, 0


class ForDeepSpeed:
    """Our loss scaling where DeepSpeed looks for its own.

    Its own is in no checkpoint of ours, doubles a step later, and ends the run where the scale cannot go lower.
    """

    def __init__(self, scaler: LossScaler) -> None:
        self.scaler = scaler

    @property
    def cur_scale(self) -> float:
        """The scale of this step's loss."""
        return self.scaler.scale

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Scale a loss."""
        return loss * self.scaler.scale

    def update_scale(self, overflow: bool) -> None:
        """Wait: DeepSpeed says so before it takes the scale off the gradients, by what the scale is then."""
