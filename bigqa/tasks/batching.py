"""Rows of tokens as batches, padded or packed, and the model called on them. In: rows. Out: tensors by name.

What all tasks share; what is learned of the tokens is each task's own. B: windows. S: tokens, padded. T: tokens of all.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigqa.tasks.base import Batch, Row

GLOBAL = "global_attention_mask"
"""What models of long windows call the tokens that all others look at, and that look at all."""
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "cu_seq_lens_q", GLOBAL)
MULTIPLE = 128
"""Packed tokens are rounded up to multiples of this, so that kernels made for one batch serve the next."""
EXAMPLE_TOKEN = 5
"""Of an example's windows: a token that is no special one."""


class Batcher:
    """Makes batches for one model."""

    def __init__(self, pad_token_id: int, takes_token_types: bool, first_position: int = 0) -> None:
        self.pad_token_id = pad_token_id
        self.takes_token_types = takes_token_types
        self.first_position = first_position
        """Position of a window's first token: RoBERTa and its kin count from behind the padding's."""

    def collate(self, rows: list[Row]) -> Batch:
        """Pad to the longest window, on the right."""
        batch = {"input_ids": padded(rows, "input_ids", self.pad_token_id)}
        batch["attention_mask"] = (places(lengths(rows)) >= 0).long()
        if self.takes_token_types:
            batch["token_type_ids"] = padded(rows, "token_type_ids", 0)
        return batch | self.targets(rows)

    def pack(self, rows: list[Row]) -> Batch:
        """Put windows end to end: one row of tokens, and where each window's lie in it."""
        lengths_B = lengths(rows)
        spare = -int(lengths_B.sum()) % MULTIPLE
        batch = self._bounds(lengths_B, spare) | {"input_ids": joined(rows, "input_ids", spare, self.pad_token_id)}
        if self.takes_token_types:
            batch["token_type_ids"] = joined(rows, "token_type_ids", spare, 0)
        return batch | self.targets(rows)

    def example(self, micro_batch: int, seq_len: int, *, packed: bool = False) -> Batch:
        """Return a full micro-batch on the current device, for shapes alone: in the order of a real one."""
        shape = (1, micro_batch * seq_len) if packed else (micro_batch, seq_len)
        tokens = {"input_ids": torch.full(shape, EXAMPLE_TOKEN)}
        if packed:
            tokens = {
                "position_ids": torch.zeros(shape, dtype=torch.long),
                "cu_seq_lens_q": torch.zeros(micro_batch + 1, dtype=torch.int32),
                "places": torch.zeros(micro_batch, seq_len, dtype=torch.long),
                **tokens,
            }
        else:
            # Of several windows one is the shorter: without padding, models leave out what they make of masks.
            # The values are those of host memory, whatever device this is for.
            mask_BS = torch.ones(shape, dtype=torch.long, device="cpu")
            mask_BS[1:, -1] = 0
            tokens["attention_mask"] = mask_BS.to(torch.get_default_device())
        if self.takes_token_types:
            tokens["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
        return tokens | self.example_targets(micro_batch, seq_len)

    def targets(self, rows: list[Row]) -> Batch:
        """Return what is to be learned of rows; nothing where they do not tell."""
        raise NotImplementedError

    def example_targets(self, micro_batch: int, seq_len: int) -> Batch:
        """Return the same for shapes alone."""
        raise NotImplementedError

    def call(self, model: nn.Module, batch: Batch, **options: Any) -> Any:
        """Call a model on a batch; return its output."""
        inputs: dict[str, Any] = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        places_BS = batch.get("places")
        if places_BS is None:
            return model(**inputs, **options)
        # A mask that is made already is handed on as it is; which window a token is of, the kernels know.
        made = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=places_BS.device)
        longest, has_spare = places_BS.shape[1], len(batch["cu_seq_lens_q"]) - 1 > len(places_BS)
        longest = max(longest, MULTIPLE - 1) if has_spare else longest
        return model(**inputs, attention_mask=made, max_length_q=longest, **options)

    def _bounds(self, lengths_B: Tensor, spare: int) -> Batch:
        """Return what tells windows apart; tokens to spare are a window of their own that nothing asks for."""
        sizes = torch.cat([lengths_B, lengths_B.new_tensor([spare] if spare else [])])
        ends = functional.pad(sizes.cumsum(0), (1, 0))
        within = torch.arange(int(ends[-1])) - ends[:-1].repeat_interleave(sizes)
        within[int(lengths_B.sum()) :] = 0  # there may be more of them than positions
        places_BS = places(lengths_B)
        places_BS = torch.where(places_BS >= 0, places_BS + ends[: len(lengths_B), None], -1)
        return {
            "position_ids": (self.first_position + within)[None],
            "cu_seq_lens_q": ends.int(),
            "places": places_BS,
        }


def lengths(rows: list[Row]) -> Tensor:
    """Return the tokens of each row, [B]."""
    return torch.tensor([len(row["input_ids"]) for row in rows])


def places(lengths_B: Tensor) -> Tensor:
    """Return 0, 1, 2, ... for each window, [B, S]; -1 beyond its end."""
    count_S = torch.arange(int(lengths_B.max()))
    return torch.where(count_S[None, :] < lengths_B[:, None], count_S[None, :], -1)


def joined(rows: list[Row], name: str, spare: int, value: int) -> Tensor:
    """Return a column's rows end to end and `spare` more, [1, T]."""
    parts = [torch.tensor(row[name], dtype=torch.long) for row in rows]
    return torch.cat([*parts, torch.full((spare,), value)])[None]


def padded(rows: list[Row], name: str, value: int) -> Tensor:
    """Return a column's rows filled up to the longest, [B, S]."""
    padded_BS = torch.full((len(rows), max(len(row[name]) for row in rows)), value, dtype=torch.long)
    for index, row in enumerate(rows):
        padded_BS[index, : len(row[name])] = torch.tensor(row[name], dtype=torch.long)
    return padded_BS
