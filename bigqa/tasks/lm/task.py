"""Loss of language models over answers. In: a model, batches. Out: a loss. B: windows. N: tokens of answers.

The model's own head is passed over: it hands its hidden states on, and `head_loss` works on them in pieces.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.tasks.base import Batch, Row
from bigqa.tasks.batching import Batcher, lengths, places
from bigqa.tasks.lm.head_loss import head_losses

CHANGED = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Of a configuration: what a model does to its logits beside the head."""


class LanguageModel(Batcher):
    """The mean over the answers' tokens of a step, each predicted by the tokens before it."""

    per_token = False

    def targets(self, rows: list[Row]) -> Batch:
        """Return for each token that is learned its id, its window, and its place in it; without answers, all are."""
        found: list[tuple[int, int, int]] = []
        for window, row in enumerate(rows):
            learned = row.get("answer", [1] * len(row["input_ids"]))
            spots = [at for at in range(1, len(row["input_ids"])) if learned[at]]
            found += [(int(row["input_ids"][at]), window, at - 1) for at in spots]
        label, window, place = torch.tensor(found, dtype=torch.long).view(-1, 3).T.contiguous()
        return {"label": label, "window": window, "place": place, "windows": places(lengths(rows))[:, 0]}

    def example_targets(self, micro_batch: int, seq_len: int) -> Batch:
        """Return the same for shapes alone: every token is learned but a window's first."""
        count = micro_batch * (seq_len - 1)
        found = {name: torch.zeros(count, dtype=torch.long) for name in ("label", "window", "place")}
        return found | {"windows": torch.zeros(micro_batch, dtype=torch.long)}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each token that is learned, [N], in fp32."""
        inner: Any = model
        while not hasattr(inner, "get_output_embeddings") and hasattr(inner, "module"):
            inner = inner.module  # wrapped for several processes
        head = inner.get_output_embeddings()
        changed = [name for name in CHANGED if getattr(inner.config, name, None) not in (None, 1, 1.0)]
        if head is None or changed:
            raise BigqaError(
                tr(
                    "{kind} changes its logits ({changed}): not for --task lm yet",
                    kind=type(inner).__name__,
                    changed=", ".join(changed),
                )
            )
        if head.weight.numel() == 0:
            raise BigqaError(
                tr("--task lm reads its head as a whole, and ZeRO-3 has a part of it: use another strategy")
            )
        with _handing_on(head):
            hidden = self.call(model, batch, use_cache=False).logits
        if "places" in batch:
            at = batch["places"][batch["window"], batch["place"]]
            hidden_NH = hidden[0].index_select(0, at)
        else:
            at = batch["window"] * hidden.shape[1] + batch["place"]
            hidden_NH = hidden.flatten(0, 1).index_select(0, at)
        return head_losses(hidden_NH, head.weight, head.bias, batch["label"])

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return the sum of each window's losses, [B]."""
        losses_N = self.losses(model, batch)
        sums_B = losses_N.new_zeros(len(batch["windows"]))
        return (sums_B.index_add(0, batch["window"], losses_N),)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over the answers' tokens."""
        return self.losses(model, batch).sum()


@contextlib.contextmanager
def _handing_on(head: nn.Module) -> Iterator[None]:
    """Let a head give what it is given inside the block."""
    head.forward = lambda hidden: hidden  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward
