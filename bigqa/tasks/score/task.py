"""Loss of scores. In: a model of one output, batches of windows with numbers. Out: squared errors. B: windows."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigqa.tasks.base import Batch, Row
from bigqa.tasks.whole_windows import SequenceTask


class Regression(SequenceTask):
    """The mean squared error, as transformers has it for one label."""

    def targets(self, rows: list[Row]) -> Batch:
        """Return the numbers wanted, [B]."""
        if "label" not in rows[0]:
            return {}
        return {"label": torch.tensor([float(row["label"]) for row in rows])}

    def example_targets(self, micro_batch: int, seq_len: int) -> Batch:
        """Return the same for shapes alone."""
        return {"label": torch.zeros(micro_batch)}

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over windows of each one's squared error."""
        (logits_B1,) = self.logits(model, batch)
        return functional.mse_loss(logits_B1[:, 0], batch["label"], reduction="sum")
