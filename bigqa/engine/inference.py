"""Logits of many windows, in order, as a stream. In: a model and memory-mapped features. Out: one pair per window."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bigqa.engine.recovery import is_out_of_memory
from bigqa.tasks.base import Batch, Row

Logits = tuple[int, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
CHUNK_WINDOWS = 512
"""Sorted by length among themselves: enough that a batch has next to no padding, few enough to keep in memory."""
BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding included."""


class SpanTask(Protocol):
    """The part of a task that inference needs."""

    def collate(self, rows: list[Row]) -> Batch:
        """Pad rows of features."""
        ...

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return start and end logits."""
        ...


@torch.inference_mode()
def span_logits(
    model: nn.Module,
    task: SpanTask,
    windows: Any,
    lengths: Sequence[int],
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Logits]:
    """Yield (window, start logits, end logits) of every window, in order, padding cut off; fp32."""
    model.eval()
    for begin in range(0, len(lengths), CHUNK_WINDOWS):
        chunk = list(range(begin, min(begin + CHUNK_WINDOWS, len(lengths))))
        found: dict[int, Logits] = {}
        for batch_windows in _batches(chunk, lengths):
            found |= _forward_in_parts(model, task, windows, batch_windows, lengths, device)
            if on_progress is not None:
                on_progress(begin + len(found), len(lengths))
        yield from (found[window] for window in chunk)


def _batches(chunk: list[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for window in sorted(chunk, key=lambda window: lengths[window]):
        if batch and (len(batch) + 1) * lengths[window] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _forward_in_parts(
    model: nn.Module,
    task: SpanTask,
    windows: Any,
    chosen: list[int],
    lengths: Sequence[int],
    device: torch.device,
) -> dict[int, Logits]:
    """Run a batch, or its halves where memory does not reach for the whole."""
    try:
        return _forward(model, task, windows, chosen, lengths, device)
    except (RuntimeError, MemoryError) as error:
        if len(chosen) == 1 or not is_out_of_memory(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(chosen) // 2
    first = _forward_in_parts(model, task, windows, chosen[:half], lengths, device)
    return first | _forward_in_parts(model, task, windows, chosen[half:], lengths, device)


def _forward(
    model: nn.Module,
    task: SpanTask,
    windows: Any,
    chosen: list[int],
    lengths: Sequence[int],
    device: torch.device,
) -> dict[int, Logits]:
    columns = windows[chosen]
    rows = [{name: values[index] for name, values in columns.items()} for index in range(len(chosen))]
    batch = {name: tensor.to(device) for name, tensor in task.collate(rows).items()}
    start_BS, end_BS = (logits.cpu().numpy() for logits in task.logits(model, batch))
    return {
        window: (window, start_BS[row, : lengths[window]], end_BS[row, : lengths[window]])
        for row, window in enumerate(chosen)
    }
