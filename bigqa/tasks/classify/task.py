"""Losses of classification. In: a model, batches of windows with labels. Out: a loss. B: windows. C: labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigqa.tasks.base import Batch, Row
from bigqa.tasks.whole_windows import SequenceTask


class Classification(SequenceTask):
    """One label of many: cross-entropy. Several at once: the mean over labels of each one's own."""

    def __init__(
        self, pad_token_id: int, takes_token_types: bool, first_position: int = 0, *, num_labels: int = 2,
        several: bool = False, weights: Sequence[float] | None = None, smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(pad_token_id, takes_token_types, first_position)
        self.num_labels = num_labels
        self.several = several
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        """[C]: what a window of each label counts; with several at once, what each label's presence counts."""
        self.smoothing = smoothing

    def targets(self, rows: list[Row]) -> Batch:
        """Return labels: [B] numbers, or [B, C] of 0 and 1."""
        if "label" not in rows[0]:
            return {}
        if self.several:
            return {"label": torch.tensor([list(row["label"]) for row in rows], dtype=torch.float32)}
        return {"label": torch.tensor([int(row["label"]) for row in rows])}

    def example_targets(self, micro_batch: int, seq_len: int) -> Batch:
        """Return the same for shapes alone."""
        shape = (micro_batch, self.num_labels) if self.several else (micro_batch,)
        return {"label": torch.zeros(shape, dtype=torch.float32 if self.several else torch.long)}

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over windows of each one's loss."""
        (logits_BC,) = self.logits(model, batch)
        # From memory that is not pinned the host still waits for the copy, but not for what is computed before it.
        weights = None if self.weights is None else self.weights.to(logits_BC.device, non_blocking=True)
        if not self.several:
            return functional.cross_entropy(
                logits_BC, batch["label"], weight=weights, label_smoothing=self.smoothing, reduction="sum"
            )
        wanted_BC = batch["label"] * (1 - self.smoothing) + self.smoothing / 2
        loss_BC = functional.binary_cross_entropy_with_logits(
            logits_BC, wanted_BC, pos_weight=weights, reduction="none"
        )
        return loss_BC.mean(1).sum()
