"""Logits of many windows, in order, as a stream. In: a model and memory-mapped features. Out: those of each window.

Windows are packed end to end where the model takes them so, else padded among their like.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bigqa.engine.attention.kernels import packs_on
from bigqa.engine.attention.packing import can_pack, split_padded
from bigqa.engine.optim.precision import cast
from bigqa.engine.recovery import is_out_of_memory
from bigqa.language import tr
from bigqa.tasks.base import AskedTask

Logits = tuple[Any, ...]
"""The number of a window, and its part of each array of logits."""
CHUNK_WINDOWS = 512
"""Batched among themselves: enough that padded ones have next to no padding, few enough to keep in memory."""
BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding included."""


@dataclass
class Inputs:
    """What logits are wanted of, and what has been found out about how."""

    task: AskedTask
    windows: Any
    """Features, as `bigqa.tasks.rows.Rows`: memory-mapped."""
    lengths: Sequence[int]
    """Tokens of each window."""
    device: torch.device
    packs: bool = False
    room: int = BATCH_TOKENS
    """Tokens that memory reaches for: half of what it last did not."""
    tell: Callable[[str], None] | None = None

    def tokens(self, chosen: Sequence[int]) -> int:
        """Return the tokens of windows together."""
        return sum(self.lengths[window] for window in chosen)


@torch.no_grad()  # and not in inference mode: what a model keeps of it is trained with afterwards
def window_logits(
    model: nn.Module,
    task: AskedTask,
    windows: Any,
    lengths: Sequence[int],
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    packs: bool | None = None,
    tell: Callable[[str], None] | None = None,
    trains: bool = False,
) -> Iterator[Logits]:
    """Yield (window, logits, ...) of every window, in order, as many as the task has, padding cut off; fp32.

    `packs`: whether the model takes packed windows, where that is known; else it is tried. `tell` is told, once, that a
    model in fp16 overflowed and goes on in fp32: trained in bf16 or fp32, it may know larger numbers than fp16 does.
    `trains`: the model is being trained, and is given back in the memory that it lay in.
    """
    model.eval()
    if packs is None:
        packs = bool(lengths) and can_pack(model, task, max(lengths))
    inputs = Inputs(task, windows, lengths, device, packs, BATCH_TOKENS, tell)
    with _as_it_was(model) if trains else contextlib.nullcontext():
        for begin in range(0, len(lengths), CHUNK_WINDOWS):
            chunk = range(begin, min(begin + CHUNK_WINDOWS, len(lengths)))
            found: dict[int, Logits] = {}
            for batch in _batches(inputs, chunk):
                found |= _forward_in_parts(model, inputs, batch)
                if on_progress is not None:
                    on_progress(begin + len(found), len(lengths))
            yield from (found[window] for window in chunk)


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put weights back where they lay before the block, if they were widened in it.

    DeepSpeed steps memory that it knows: of weights that lie elsewhere it would step what nobody reads.
    """
    before = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, name, one) for module in model.modules() for name, one in module._buffers.items()]
    try:
        yield
    finally:
        for parameter, data in before:
            if parameter.dtype != data.dtype:
                parameter.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


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
    if len(chosen) == 1 or inputs.tokens(chosen) <= inputs.room:
        try:
            found = _forward(model, inputs, chosen)
        except (RuntimeError, MemoryError) as error:
            if len(chosen) == 1 or not is_out_of_memory(error):
                raise
        else:
            return _in_finite_precision(model, inputs, chosen, found)
        inputs.room = inputs.tokens(chosen) // 2
        if inputs.device.type == "cuda":
            torch.cuda.empty_cache()
    half = len(chosen) // 2
    first = _forward_in_parts(model, inputs, chosen[:half])
    return first | _forward_in_parts(model, inputs, chosen[half:])


def _in_finite_precision(
    model: nn.Module, inputs: Inputs, chosen: list[int], found: dict[int, Logits]
) -> dict[int, Logits]:
    """Return what was found of a batch; where fp16 overflowed, widen the model to fp32, and run it again.

    A lack of memory is the caller's: a model that is half in fp32 runs nowhere, with however few windows.
    """
    if _is_fp16(model) and not all(np.isfinite(one).all() for logits in found.values() for one in logits[1:]):
        with torch.inference_mode(False), torch.no_grad():  # what is made in it can be used nowhere else
            cast(model, torch.float32)
        inputs.packs = inputs.packs and packs_on(inputs.device, torch.float32, model.config, max(inputs.lengths))
        if inputs.tell is not None:
            inputs.tell(tr("fp16 overflows with this model: going on in fp32"))
        return _forward_in_parts(model, inputs, chosen)
    return found


def _is_fp16(model: nn.Module) -> bool:
    return any(parameter.dtype == torch.float16 for parameter in model.parameters())


def _forward(model: nn.Module, inputs: Inputs, chosen: list[int]) -> dict[int, Logits]:
    columns = inputs.windows[chosen]
    rows = [{name: values[index] for name, values in columns.items()} for index in range(len(chosen))]
    made = inputs.task.pack(rows) if inputs.packs else inputs.task.collate(rows)
    batch = {name: tensor.to(inputs.device) for name, tensor in made.items()}
    found = [logits.cpu().numpy() for logits in inputs.task.logits(model, batch)]
    if not inputs.task.per_token:
        return {window: (window, *(one[row] for one in found)) for row, window in enumerate(chosen)}
    return {
        window: (window, *(one_BS[row, : inputs.lengths[window]] for one_BS in found))
        for row, window in enumerate(chosen)
    }
