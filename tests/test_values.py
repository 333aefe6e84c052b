"""What is known of tensors without data: against the same operations on data."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BigBirdConfig, BigBirdForQuestionAnswering

from bigqa.memory.shapes import Following
from bigqa.memory.values import NotKnownError
from bigqa.tasks.qa.task import QuestionAnswering


def mask(device: str) -> Tensor:
    return (torch.arange(12, device=device) < 7).view(2, 6).long()


READINGS: dict[str, Callable[[Tensor], Any]] = {
    "all": lambda m: bool((m > -1).all()),
    "not all": lambda m: bool(m.bool().all()),
    "most": lambda m: m.sum(-1).max().item(),
    "numbers": lambda m: [len(one) for one in m.nonzero(as_tuple=True)],
    "chosen": lambda m: tuple(torch.ones_like(m, dtype=torch.float)[m > 0].shape),
    "listed": lambda m: m.sum(1).tolist(),
    "equal": lambda m: torch.equal(m, m.flip(0)),
    "repeated": lambda m: tuple(torch.arange(2, device=m.device).repeat_interleave(m.sum(1)).shape),
    "written": lambda m: int(m.clone().masked_fill_(m > 0, 5).sum()),
    "filled": lambda m: int(torch.full_like(m, 3).sum() + m.new_zeros(2).sum()),
    "joined": lambda m: int(torch.cat([m, m[:, :2]], 1).sum()),
    "largest": lambda m: int(m.max(dim=1).indices.sum()),
    "of data": lambda m: int((m.sum(1) + torch.tensor([1, 2]).to(m.device)).sum()),
}


@pytest.mark.parametrize("name", READINGS)
def test_what_hangs_on_inputs_alone_is_known(name: str) -> None:
    with Following():
        assert READINGS[name](mask("meta")) == READINGS[name](mask("cpu"))


def test_what_was_written_to_another_view_is_no_longer_known() -> None:
    with Following():
        whole = mask("meta")
        part = whole[:, 0]
        assert int(whole.sum()) == 7
        part.fill_(9)
        with pytest.raises(NotKnownError):
            whole.sum().item()
        assert int(part.sum()) == 18


def test_of_what_hangs_on_weights_a_truth_value_is_taken_to_be_true() -> None:
    with Following():
        weight = torch.empty(4, device="meta").normal_()
        assert bool((weight > 0).all())
        with pytest.raises(NotKnownError, match="hang on its weights"):
            weight.sum().item()
        drawn = torch.zeros(4, device="meta").uniform_()
        with pytest.raises(NotKnownError):
            drawn.max().item()


@pytest.mark.parametrize("count", [1, 3])
def test_several_windows_have_padding_and_one_has_none(count: int) -> None:
    """Models leave out what they make of a mask where all of it is ones: of windows of one length, as no data are."""
    config = BigBirdConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        max_position_embeddings=32, attention_type="original_full",
    )  # fmt: skip
    task, made = QuestionAnswering(0, True), []
    rows = [{"input_ids": [5] * length, "token_type_ids": [0] * length, "start": 1, "end": 2} for length in (16, 9, 12)]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.where.self:
                made.append((result.device.type, result.numel()))
            return result

    real = BigBirdForQuestionAnswering(config).eval()
    with Watch():
        task.logits(real, task.collate(rows[:count]))
    with Following(), torch.device("meta"):
        traced = BigBirdForQuestionAnswering(config).eval()
        with Watch():
            task.logits(traced, task.example(count, 16))
    numel = count * 16 * 16
    assert made.count(("cpu", numel)) == made.count(("meta", numel)) == int(count > 1)
