"""Models that answer for a whole window. In: batches of windows. Out: the logits of each.

The first token of a window stands for it. B: windows. T: tokens of all. H: hidden size. C: classes.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from bigqa.tasks.base import Batch
from bigqa.tasks.batching import Batcher


class SequenceTask(Batcher):
    """The calls of every `AutoModelForSequenceClassification`."""

    per_token = False

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return the logits of each window in fp32, [B, C]."""
        if "places" in batch:
            with _first_tokens_alone(model, batch["places"][:, 0]):
                output = self.call(model, batch)
        else:
            output = self.call(model, batch)
        return (output.logits.float(),)


@contextlib.contextmanager
def _first_tokens_alone(model: nn.Module, places_B: Tensor) -> Iterator[None]:
    """Hand a model's head the first token of each packed window, as windows of one token: [1, T, H] -> [B, 1, H].

    Heads take the first token of a window, and pool it within the model where that has a pooler. Those that do
    otherwise do not give the logits of padded windows, and `engine.attention.packing` finds that out.
    """
    inner: Any = model
    while not hasattr(inner, "base_model") and hasattr(inner, "module"):
        inner = inner.module  # wrapped for several processes
    base: Any = inner.base_model
    if base is inner:
        raise NotImplementedError("a model without a body of its own cannot be packed")

    def first_alone(module: Any, args: Any, output: Any) -> Any:
        hidden_B1H = output.last_hidden_state[0].index_select(0, places_B)[:, None]
        output.last_hidden_state = hidden_B1H
        if getattr(output, "pooler_output", None) is not None:
            output.pooler_output = module.pooler(hidden_B1H)
        return output

    handle = base.register_forward_hook(first_alone)
    try:
        yield
    finally:
        handle.remove()
