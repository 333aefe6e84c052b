"""Logits of many windows, in order, as a stream. In: a model and memory-mapped features. Out: one pair per window.

Windows are packed end to end where the model takes them so, else padded among their like.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bigqa.engine.attention.packing import can_pack, split_padded
from bigqa.engine.recovery import is_out_of_memory
from bigqa.tasks.base import SpanTask

Logits = tuple[int, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
CHUNK_WINDOWS = 512
"""Batched among themselves: enough that padded ones have next to no padding, few enough to keep in memory."""
BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding included."""


@dataclass(frozen=True)
class Inputs:
    """What logits are wanted of."""

    task: SpanTask
    windows: Any
    """Features, as `bigqa.tasks.rows.Rows`: memory-mapped."""
    lengths: Sequence[int]
    """Tokens of each window."""
    device: torch.device
    packs: bool = False


@torch.inference_mode()
def span_logits(
    model: nn.Module,
    task: SpanTask,
    windows: Any,
    lengths: Sequence[int],
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    packs: bool | None = None,
) -> Iterator[Logits]:
    """Yield (window, start logits, end logits) of every window, in order, padding cut off; fp32.

    `packs`: whether the model takes packed windows, where that is known; else it is tried.
    """
    model.eval()
    if packs is None:
        packs = bool(lengths) and can_pack(model, task, max(lengths))
    inputs = Inputs(task, windows, lengths, device, packs)
    for begin in range(0, len(lengths), CHUNK_WINDOWS):
        chunk = range(begin, min(begin + CHUNK_WINDOWS, len(lengths)))
        found: dict[int, Logits] = {}
        for batch in _batches(inputs, chunk):
            found |= _forward_in_parts(model, inputs, batch)
            if on_progress is not None:
                on_progress(begin + len(found), len(lengths))
        yield from (found[window] for window in chunk)


def _batches(inputs: Inputs, chunk: range) -> Iterator[list[int]]:
    lengths = [inputs.lengths[window] for window in chunk]
    cut = _in_order if inputs.packs else split_padded
    return ([chunk[index] for index in part] for part in cut(lengths, BATCH_TOKENS))


def _in_order(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if length > room or not parts:
            parts.append([])
            room = tokens
        parts[-1].append(index)
        room -= length
    return parts


def _forward_in_parts(model: nn.Module, inputs: Inputs, chosen: list[int]) -> dict[int, Logits]:
    """Run a batch, or its halves where memory does not reach for the whole."""
    try:
        return _forward(model, inputs, chosen)
    except (RuntimeError, MemoryError) as error:
        if len(chosen) == 1 or not is_out_of_memory(error):
            raise
    if inputs.device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(chosen) // 2
    first = _forward_in_parts(model, inputs, chosen[:half])
    return first | _forward_in_parts(model, inputs, chosen[half:])


def _forward(model: nn.Module, inputs: Inputs, chosen: list[int]) -> dict[int, Logits]:
    columns = inputs.windows[chosen]
    rows = [{name: values[index] for name, values in columns.items()} for index in range(len(chosen))]
    made = inputs.task.pack(rows) if inputs.packs else inputs.task.collate(rows)
    batch = {name: tensor.to(inputs.device) for name, tensor in made.items()}
    start_BS, end_BS = (logits.cpu().numpy() for logits in inputs.task.logits(model, batch))
    return {
        window: (window, start_BS[row, : inputs.lengths[window]], end_BS[row, : inputs.lengths[window]])
        for row, window in enumerate(chosen)
    }
