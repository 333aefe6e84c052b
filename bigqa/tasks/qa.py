"""Extractive question answering: windows in, start and end logits out.

Loss of a window = (CE_start + CE_end) / 2 over the window's own tokens: padding is masked out, so that a window's
loss does not depend on the company it keeps in a batch, or on the number of processes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigqa.tasks.base import Batch, Row

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TARGETS = ("start", "end")
COLUMNS = ("input_ids", "token_type_ids", *TARGETS)
"""What a batch is made of; the other columns of the features serve to read answers off the logits."""


class QuestionAnswering:
    """Implements `Task` for every `AutoModelForQuestionAnswering`. B: windows. S: tokens, padded."""

    def __init__(self, pad_token_id: int, takes_token_types: bool) -> None:
        self.pad_token_id = pad_token_id
        self.takes_token_types = takes_token_types

    def collate(self, rows: list[Row]) -> Batch:
        """Pad to the longest window, on the right."""
        batch = {"input_ids": _pad(rows, "input_ids", self.pad_token_id)}
        batch["attention_mask"] = _mask(rows, batch["input_ids"].shape[1])
        if self.takes_token_types:
            batch["token_type_ids"] = _pad(rows, "token_type_ids", 0)
        for name in TARGETS:
            if name in rows[0]:
                batch[name] = torch.tensor([int(row[name]) for row in rows])
        return batch

    def example(self, micro_batch: int, seq_len: int) -> Batch:
        """Return a full micro-batch on the current device, for shapes alone."""
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if self.takes_token_types else [])]
        batch = {name: torch.zeros(micro_batch, seq_len, dtype=torch.long) for name in names}
        return batch | {name: torch.zeros(micro_batch, dtype=torch.long) for name in TARGETS}

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return start and end logits in fp32, [B, S] each; -inf at padding."""
        output = model(**{name: batch[name] for name in MODEL_INPUTS if name in batch})
        padding_BS = batch["attention_mask"] == 0
        start_BS = output.start_logits.float().masked_fill(padding_BS, float("-inf"))
        end_BS = output.end_logits.float().masked_fill(padding_BS, float("-inf"))
        return start_BS, end_BS

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over windows of (CE_start + CE_end) / 2."""
        start_BS, end_BS = self.logits(model, batch)
        start_loss = functional.cross_entropy(start_BS, batch["start"], reduction="sum")
        end_loss = functional.cross_entropy(end_BS, batch["end"], reduction="sum")
        return (start_loss + end_loss) / 2


def _pad(rows: list[Row], name: str, value: int) -> Tensor:
    longest = max(len(row[name]) for row in rows)
    padded_BS = torch.full((len(rows), longest), value, dtype=torch.long)
    for index, row in enumerate(rows):
        padded_BS[index, : len(row[name])] = torch.as_tensor(row[name], dtype=torch.long)
    return padded_BS


def _mask(rows: list[Row], length: int) -> Tensor:
    lengths_B = torch.tensor([len(row["input_ids"]) for row in rows])
    return (torch.arange(length)[None, :] < lengths_B[:, None]).long()
