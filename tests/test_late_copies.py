"""Copies beside the computation, as late as a GPU may make them: no one reads what is not there, or frees what is used.

On a CPU a copy is made when it is asked for, so that a wait which is missing changes nothing. Here it is made when it
is waited for, behind all that its stream had to do before; and memory that nobody but the copy holds any more, which
the computation would have by then, is an error.
"""

import sys
from collections.abc import Hashable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering

from bigqa.engine import offload, recompute
from bigqa.engine.build import build
from bigqa.engine.loop.step import Parts, accumulate, train_step
from bigqa.engine.offload import ActivationOffload
from bigqa.engine.processes import Processes
from bigqa.engine.stream import building
from bigqa.engine.stream.borders import ON_THEIR_WAY, Borders
from bigqa.engine.stream.link import _Counting
from bigqa.settings import make_settings
from bigqa.strategy import Strategy
from bigqa.tasks.qa.task import QuestionAnswering

Event = tuple["Stream", int]


def alias(tensor: Tensor) -> Tensor:
    """Return the same memory without a word of whose it is: a view would hold on to what it is a view of."""
    found = torch.empty(0, dtype=tensor.dtype)
    return found.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def owners(tensor: Tensor) -> int:
    """Count who holds its memory, as a tensor or as Python's storage."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) + sys.getrefcount(storage)  # type: ignore[attr-defined]


ALONE = owners(alias(torch.empty(1)))


class Stream:
    """Copies in order, each when it is waited for."""

    def __init__(self) -> None:
        self.left: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.count = 0

    def copy(self, to: Tensor, source: Tensor, on_device: Tensor) -> Event:
        self.check()
        seen = alias(on_device)
        self.left[self.count] = (seen if to is on_device else to, seen if source is on_device else source, seen)
        self.count += 1
        return self, self.count - 1

    def check(self) -> None:
        for _, _, on_device in self.left.values():
            assert owners(on_device) > ALONE, "freed while a copy is on its way"

    def reach(self, number: int) -> None:
        for one in [one for one in self.left if one <= number]:
            to, source, _ = self.left.pop(one)
            to.copy_(source)
        self.check()


def wait_for(event: Event) -> None:
    stream, number = event
    stream.reach(number)


class Late(_Counting):
    """A link of two streams, as a GPU's."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.weights, self.others = Stream(), Stream()
        self.blocks: dict[Hashable, Tensor] = {}

    pinned = _Counting.kept

    def block(self, key: Hashable, size_bytes: int) -> Tensor:
        block = self.blocks.get(key)
        if block is None or block.numel() < size_bytes:
            self.land()  # as memory is let go of that was pinned
            block = self.blocks[key] = torch.empty(size_bytes, dtype=torch.uint8)
        return block[:size_bytes]

    def arrive(self, to: Tensor, source: Tensor, *, weights: bool = False) -> Event:
        to.view(torch.uint8).fill_(255)  # no number, until it is there
        return (self.weights if weights else self.others).copy(to, source, to)

    def leave(self, to: Tensor, source: Tensor) -> Event:
        return self.others.copy(to, source, source)

    def wait(self, event: Any) -> None:
        if event is not None:
            wait_for(event)

    def land(self) -> None:
        for stream in (self.weights, self.others):
            stream.reach(stream.count)


def batch_of(step: int, number: int) -> dict[str, Any]:
    length = 9 + (5 * step + 3 * number) % 11
    return {"input_ids": list(range(1, length + 1)), "token_type_ids": [0] * length, "start": 1, "end": 3}


def parts_of(axes: dict[str, Any], processes: Processes) -> Parts:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=32,
        max_position_embeddings=32, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2,
    )  # fmt: skip
    settings = make_settings(
        model="tiny", train_file=Path("x"), out=Path("x"), device="cpu", seq_len=24, doc_stride=4, max_query_length=4,
        strategy=Strategy(device="cpu", stream=True, **axes), precision="auto", clip=0.5,
    )  # fmt: skip
    return build(BertForQuestionAnswering(config).train(), QuestionAnswering(0, True), settings, processes)


def learned(parts: Parts, micro_batches: int) -> list[Any]:
    found: list[Any] = []
    for step in range(3):
        parts.update.set_rate(1e-3)
        parts.update.begin(step, 5)
        torch.manual_seed(step)
        rows = [batch_of(step, number) for number in range(micro_batches)]
        found += map(float, train_step(parts, [parts.task.pack([row]) for row in rows], micro_batches))
    return found + [weight.tolist() for weight in parts.update.state().weights.values()]


@pytest.mark.parametrize("micro_batches", [1, 2, 5])
@pytest.mark.parametrize("axes", [{}, {"precision": "bf16-sr"}], ids=["exact", "random"])
def test_streamed_layers_wait_for_what_they_read(
    monkeypatch: pytest.MonkeyPatch, axes: dict[str, Any], micro_batches: int
) -> None:
    processes = Processes("cpu")
    at_once = learned(parts_of(axes, processes), micro_batches)
    monkeypatch.setattr(building, "link_to", Late)
    parts = parts_of(axes, processes)
    assert isinstance(parts.passes.link, Late)  # type: ignore[union-attr]
    assert learned(parts, micro_batches) == at_once
    parts.passes.link.land()  # type: ignore[union-attr]


def test_what_is_fetched_and_then_made_anew_is_held_until_it_has_come() -> None:
    """The place of what was fetched in vain would be another tensor's while the copy into it is on its way."""
    link = Late(torch.device("cpu"))
    borders = Borders(link)
    for number in range(4):
        borders.put("gradient", torch.full((64,), float(number)))
        borders.get("gradient")
        borders.ahead("gradient")
    borders.put("gradient", torch.full((64,), 9.0))
    link.others.check()
    for number in range(ON_THEIR_WAY + 2):
        borders.put(number, torch.zeros(64))
    assert borders.get("gradient").tolist() == [9.0] * 64
    borders.clear()


class LateCopies:
    """As `engine.offload._OnAStream`, copies of a storage as late as they may be."""

    def __init__(self) -> None:
        self.stream = Stream()

    def begin(self) -> None: ...

    def out(self, storage: torch.UntypedStorage) -> tuple[Tensor, Event]:
        source = offload._as_bytes(storage)
        host = torch.empty_like(source)
        return host, self.stream.copy(host, source, source)

    def back(self, host: Tensor) -> tuple[torch.UntypedStorage, Event]:
        device = torch.full_like(host, 255)
        return device.untyped_storage(), self.stream.copy(device, host, device)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_activations_are_waited_for(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    """Several micro-batches, of which a part of the last has no gradient."""
    monkeypatch.setattr(offload, "MIN_BYTES", 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(wait_event=wait_for))
    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=32)
    torch.manual_seed(0)
    model = BertForQuestionAnswering(config).train()
    recompute.apply(model, mode)
    rows = [batch_of(0, number) for number in range(3)]
    task, found = QuestionAnswering(0, True), []
    for sent in (None, ActivationOffload(model)):
        if sent is not None:
            sent._copies = copies = LateCopies()
        update = SimpleNamespace(micro_batch=lambda **_: nullcontext(), backward=lambda loss: loss.backward())
        parts = Parts(model=model, update=update, task=task, offload=sent)  # type: ignore[arg-type]
        model.zero_grad()
        torch.manual_seed(1)
        accumulate(parts, [task.pack([row]) for row in rows], 3)
        found.append([parameter.grad.tolist() for parameter in model.parameters()])
    assert found[0] == found[1] and copies.stream.count > 100 and not copies.stream.left
