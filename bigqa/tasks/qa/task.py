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

GLOBAL = "global_attention_mask"
"""What models of long windows call the tokens that all others look at, and that look at all."""
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "cu_seq_lens_q", GLOBAL)
TARGETS = ("start", "end")
MULTIPLE = 128
"""Packed tokens are rounded up to multiples of this, so that kernels made for one batch serve the next."""
EXAMPLE_TOKEN, EXAMPLE_QUESTION = 5, 64
"""Of an example's windows: a token that is no special one, and the question's longest length."""
COLUMNS = ("input_ids", "token_type_ids", *TARGETS)
"""What a batch is made of; the other columns of the features serve to read answers off the logits."""


class QuestionAnswering:
    """Implements `Task` for every `AutoModelForQuestionAnswering`. B: windows. S: tokens, padded. T: tokens of all."""

    per_token = True

    def __init__(
        self, pad_token_id: int, takes_token_types: bool, first_position: int = 0, separator: int | None = None
    ) -> None:
        self.pad_token_id = pad_token_id
        self.takes_token_types = takes_token_types
        self.first_position = first_position
        """Position of a window's first token: RoBERTa and its kin count from behind the padding's."""
        self.separator = separator
        """The token behind the question, of a model in which the question looks at all; see `separator_for`."""

    def collate(self, rows: list[Row]) -> Batch:
        """Pad to the longest window, on the right."""
        batch = {"input_ids": _pad(rows, "input_ids", self.pad_token_id)}
        batch["attention_mask"] = (_places(_lengths(rows)) >= 0).long()
        if self.takes_token_types:
            batch["token_type_ids"] = _pad(rows, "token_type_ids", 0)
        if self.separator is not None:
            batch[GLOBAL] = _question(batch["input_ids"], self.separator)
        return batch | _targets(rows)

    def pack(self, rows: list[Row]) -> Batch:
        """Put windows end to end: one row of tokens, and where each window's lie in it."""
        lengths_B = _lengths(rows)
        spare = -int(lengths_B.sum()) % MULTIPLE
        batch = self._packed(lengths_B, spare) | {"input_ids": _joined(rows, "input_ids", spare, self.pad_token_id)}
        if self.takes_token_types:
            batch["token_type_ids"] = _joined(rows, "token_type_ids", spare, 0)
        return batch | _targets(rows)

    def example(self, micro_batch: int, seq_len: int, *, packed: bool = False) -> Batch:
        """Return a full micro-batch on the current device, for shapes alone."""
        shape = (1, micro_batch * seq_len) if packed else (micro_batch, seq_len)
        batch = {"input_ids": torch.full(shape, EXAMPLE_TOKEN)}
        names = [*(["token_type_ids"] if self.takes_token_types else []), *(["position_ids"] if packed else [])]
        batch |= {name: torch.zeros(shape, dtype=torch.long) for name in names}
        if not packed:
            batch["attention_mask"] = torch.ones(shape, dtype=torch.long)
        if self.separator is not None and not packed:
            asks = torch.arange(seq_len) < min(EXAMPLE_QUESTION, seq_len // 2)
            batch[GLOBAL] = asks.long().expand(shape).contiguous()
        if packed:
            batch["cu_seq_lens_q"] = torch.zeros(micro_batch + 1, dtype=torch.int32)
            batch["places"] = torch.zeros(micro_batch, seq_len, dtype=torch.long)
        return batch | {name: torch.zeros(micro_batch, dtype=torch.long) for name in TARGETS}

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return start and end logits in fp32, [B, S] each; -inf at padding."""
        inputs: dict[str, Any] = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        places_BS = batch.get("places")
        if places_BS is None:
            output = model(**inputs)
            padding_BS = batch["attention_mask"] == 0
            both = (output.start_logits, output.end_logits)
        else:
            # A mask that is made already is handed on as it is; which window a token is of, the kernels know.
            made = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=places_BS.device)
            longest, has_spare = places_BS.shape[1], len(batch["cu_seq_lens_q"]) - 1 > len(places_BS)
            longest = max(longest, MULTIPLE - 1) if has_spare else longest
            output = model(**inputs, attention_mask=made, max_length_q=longest)
            padding_BS = places_BS < 0
            both = tuple(one_1T[0][places_BS.clamp_min(0)] for one_1T in (output.start_logits, output.end_logits))
        start_BS, end_BS = (one_BS.float().masked_fill(padding_BS, float("-inf")) for one_BS in both)
        return start_BS, end_BS

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over windows of (CE_start + CE_end) / 2."""
        start_BS, end_BS = self.logits(model, batch)
        start_loss = functional.cross_entropy(start_BS, batch["start"], reduction="sum")
        end_loss = functional.cross_entropy(end_BS, batch["end"], reduction="sum")
        return (start_loss + end_loss) / 2

    def _packed(self, lengths_B: Tensor, spare: int) -> Batch:
        """Return what tells windows apart; tokens to spare are a window of their own that nothing asks for."""
        sizes = torch.cat([lengths_B, lengths_B.new_tensor([spare] if spare else [])])
        ends = functional.pad(sizes.cumsum(0), (1, 0))
        within = torch.arange(int(ends[-1])) - ends[:-1].repeat_interleave(sizes)
        within[int(lengths_B.sum()) :] = 0  # there may be more of them than positions
        places_BS = _places(lengths_B)
        places_BS = torch.where(places_BS >= 0, places_BS + ends[: len(lengths_B), None], -1)
        return {
            "position_ids": (self.first_position + within)[None],
            "cu_seq_lens_q": ends.int(),
            "places": places_BS,
        }


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


def _lengths(rows: list[Row]) -> Tensor:
    return torch.tensor([len(row["input_ids"]) for row in rows])


def _places(lengths_B: Tensor) -> Tensor:
    """Return 0, 1, 2, ... for each window, [B, S]; -1 beyond its end."""
    count_S = torch.arange(int(lengths_B.max()))
    return torch.where(count_S[None, :] < lengths_B[:, None], count_S[None, :], -1)


def _targets(rows: list[Row]) -> Batch:
    return {name: torch.tensor([int(row[name]) for row in rows]) for name in TARGETS if name in rows[0]}


def _joined(rows: list[Row], name: str, spare: int, value: int) -> Tensor:
    parts = [torch.tensor(row[name], dtype=torch.long) for row in rows]
    return torch.cat([*parts, torch.full((spare,), value)])[None]


def _pad(rows: list[Row], name: str, value: int) -> Tensor:
    padded_BS = torch.full((len(rows), max(len(row[name]) for row in rows)), value, dtype=torch.long)
    for index, row in enumerate(rows):
        padded_BS[index, : len(row[name])] = torch.tensor(row[name], dtype=torch.long)
    return padded_BS
