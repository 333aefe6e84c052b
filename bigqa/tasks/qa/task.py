"""Extractive question answering: windows in, start and end logits out.

Loss of a window = (CE_start + CE_end) / 2 over the window's own tokens: padding is masked out, so that a window's
loss does not depend on the company it keeps in a batch, or on the number of processes. Windows are padded to the
longest of a batch, or packed end to end.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigqa.tasks.base import Batch, Row
from bigqa.tasks.batching import GLOBAL, Batcher

TARGETS = ("start", "end")
EXAMPLE_QUESTION = 64
"""Of an example's windows: the question's longest length."""
COLUMNS = ("input_ids", "token_type_ids", *TARGETS)
"""What a batch is made of; the other columns of the features serve to read answers off the logits."""


class QuestionAnswering(Batcher):
    """Implements `Task` for every `AutoModelForQuestionAnswering`. B: windows. S: tokens, padded. T: tokens of all."""

    per_token = True

    def __init__(
        self, pad_token_id: int, takes_token_types: bool, first_position: int = 0, separator: int | None = None
    ) -> None:
        super().__init__(pad_token_id, takes_token_types, first_position)
        self.separator = separator
        """The token behind the question, of a model in which the question looks at all; see `separator_for`."""

    def collate(self, rows: list[Row]) -> Batch:
        """Pad to the longest window, on the right."""
        batch = super().collate(rows)
        if self.separator is not None:
            batch[GLOBAL] = _question(batch["input_ids"], self.separator)
        return batch

    def example(self, micro_batch: int, seq_len: int, *, packed: bool = False) -> Batch:
        """Return a full micro-batch on the current device, for shapes alone."""
        batch = super().example(micro_batch, seq_len, packed=packed)
        if self.separator is not None and not packed:
            asks = torch.arange(seq_len) < min(EXAMPLE_QUESTION, seq_len // 2)
            batch[GLOBAL] = asks.long().expand(micro_batch, seq_len).contiguous()
        return batch

    def targets(self, rows: list[Row]) -> Batch:
        """Return where answers start and end, [B] each; nothing where the rows do not tell."""
        return {name: torch.tensor([int(row[name]) for row in rows]) for name in TARGETS if name in rows[0]}

    def example_targets(self, micro_batch: int, seq_len: int) -> Batch:
        """Return the same for shapes alone."""
        return {name: torch.zeros(micro_batch, dtype=torch.long) for name in TARGETS}

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return start and end logits in fp32, [B, S] each; -inf at padding."""
        output = self.call(model, batch)
        places_BS = batch.get("places")
        both = (output.start_logits, output.end_logits)
        if places_BS is None:
            padding_BS = batch["attention_mask"] == 0
        else:
            padding_BS = places_BS < 0
            both = tuple(one_1T[0][places_BS.clamp_min(0)] for one_1T in both)
        start_BS, end_BS = (one_BS.float().masked_fill(padding_BS, float("-inf")) for one_BS in both)
        return start_BS, end_BS

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over windows of (CE_start + CE_end) / 2."""
        start_BS, end_BS = self.logits(model, batch)
        start_loss = functional.cross_entropy(start_BS, batch["start"], reduction="sum")
        end_loss = functional.cross_entropy(end_BS, batch["end"], reduction="sum")
        return (start_loss + end_loss) / 2


def separator_for(model: Any, separator: int | None) -> int | None:
    """Return the separator where a model, or its class, is told which tokens look at all: those of the question.

    As Longformer's paper has it (arXiv:2004.05150, section 5). The library finds them by itself in windows of RoBERTa's
    form alone.
    """
    return separator if GLOBAL in inspect.signature(model.forward).parameters else None


def _question(ids_BS: Tensor, separator: int) -> Tensor:
    """Return 1 for the tokens before the first separator, [B, S]; of a window without one, for the first token."""
    before_BS = (ids_BS == separator).cumsum(1) == 0
    first_BS = torch.arange(ids_BS.shape[1]) == 0
    return torch.where(before_BS.all(1, keepdim=True), first_BS, before_BS).long()
