"""Windows without padding. In: a model, or lengths of windows. Out: whether it can be packed, and what goes together.

Padding is left out before the embeddings, once. Whether a model keeps packed windows apart is tried, not looked up: its
attention may go other ways than the library's interface, or positions may be counted in a way of its own.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.attention import kernels as attention
from bigqa.engine.recovery import is_out_of_memory
from bigqa.errors import BigqaError, in_a_line
from bigqa.language import tr
from bigqa.tasks.base import AskedTask, Row

FEWEST = 128
"""Tokens of a model without a vocabulary, which takes characters."""
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest difference of logits, as a share of the largest: packed windows that see each other differ by far more."""


def can_pack(model: nn.Module, task: AskedTask, seq_len: int) -> bool:
    """Whether windows packed together get the logits that they have padded: tried on two of them, without gradients.

    Raises: BigqaError where the model takes no windows of text at all.
    """
    was_training = model.training
    model.eval()
    try:
        rows = trial_rows(model.config, seq_len)
        padded = _tried(lambda: _logits(model, task, task.collate(rows)))
        if isinstance(padded, Exception):
            raise _no_text(model, padded)
        told_before = attention.count_packed()
        packed = _tried(lambda: _logits(model, task, task.pack(rows)))
    finally:
        model.train(was_training)
    # Else its attention was never told where a window ends.
    if isinstance(packed, Exception) or attention.count_packed() == told_before:
        return False
    precision = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return bool((padded - packed).abs().max() <= CLOSE[precision] * padded.abs().max())


def _tried(call: Callable[[], Tensor]) -> Tensor | Exception:
    """Return logits, or how a model failed: its own code may in any way, on what it was not made for."""
    try:
        with torch.no_grad():
            return call()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return error


def _no_text(model: nn.Module, error: Exception) -> BigqaError:
    return BigqaError(
        tr(
            "{kind} cannot be asked about windows of text alone: {error}",
            kind=type(model).__name__,
            error=in_a_line(error),
        )
    )


def trial_rows(config: Any, seq_len: int) -> list[Row]:
    """Return two windows of different lengths to try a model on."""
    size = _trial_size(config, seq_len)
    rows: list[Row] = []
    for length in (size, size // 2 + 2):
        ids = torch.arange(1, length + 1) * 7919 % getattr(config, "vocab_size", FEWEST)
        rows.append({"input_ids": ids.tolist(), "token_type_ids": [0] * length})
    return rows


def _trial_size(config: Any, seq_len: int) -> int:
    """Return tokens enough that layers which look only so far are seen to."""
    return min(8 + max((span for span in attention.spans_of(config) if span < seq_len), default=0), seq_len)


def packs_without_data(model: nn.Module, task: Any) -> bool:
    """Whether a model on the meta device hands the windows' bounds to its attention: as far as shapes can tell.

    One that counts positions by itself counts through all windows, and one whose embeddings look at their neighbours
    looks into other windows, which shapes do not tell.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if not takes_positions or getattr(model.config, "trigram_input", False):
        return False
    packed_calls = attention.count_packed()
    with torch.device("meta"):
        packed = _tried(lambda: torch.stack(task.logits(model.eval(), task.example(2, 16, packed=True))))
    told = attention.count_packed() - packed_calls
    # Some layers may be no attention, and look through all windows.
    return not isinstance(packed, Exception) and told >= int(getattr(model.config, "num_hidden_layers", 1))


def check_takes_text(model: nn.Module, task: Any) -> None:
    """Try a model on the meta device on windows of text. Raises: BigqaError where it wants something else."""
    with torch.device("meta"):
        padded = _tried(lambda: torch.stack(task.logits(model.eval(), task.example(2, 16))))
    if isinstance(padded, Exception):
        raise _no_text(model, padded)


def _logits(model: nn.Module, task: AskedTask, batch: Any) -> Tensor:
    device = next(model.parameters()).device
    found = task.logits(model, {name: tensor.to(device) for name, tensor in batch.items()})
    return torch.stack(found).nan_to_num(neginf=0.0)


def fill(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Deal windows out to the fewest micro-batches of at most so many tokens that a simple rule finds.

    The longest go first, each to the micro-batch that has the fewest tokens yet, so that all are alike in size.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    count = max(1, -(-sum(lengths) // tokens))
    while True:
        parts: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for index in by_length:
            least = min(range(count), key=lambda part: sizes[part])
            parts[least].append(index)
            sizes[least] += lengths[index]
        if max(sizes) <= tokens or count >= len(lengths):
            return [part for part in parts if part]
        count += 1


def split_padded(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Cut windows, the longest first, into micro-batches of at most so many tokens with their padding."""
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= tokens:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts
