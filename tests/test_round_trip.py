"""States of every optimizer go to a checkpoint and come back with equal bits, and the run goes on as if unbroken."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigqa.engine.loop import checkpoint
from bigqa.engine.optim.optimizers import make_optimizer, parameter_groups
from bigqa.engine.optim.precision import Weights
from bigqa.engine.optim.update import Update
from bigqa.strategy import Strategy

ROWS = {
    "fp32": Strategy(precision="fp32", device="cpu"),
    "bf16": Strategy(precision="bf16", device="cpu"),
    "8bit": Strategy(precision="fp32", optimizer="adamw8bit", device="cpu"),
    "8bit of bf16": Strategy(precision="bf16", optimizer="adamw8bit", device="cpu"),
    "random rounding": Strategy(precision="bf16-sr", device="cpu"),
    "8bit with random rounding": Strategy(precision="bf16-sr", optimizer="adamw8bit", device="cpu"),
}


class Rows(nn.Module):
    """A table of which most rows get no gradient, one whose size is no multiple of a block's, and a small one.

    The second has 1,219 blocks: of a block whose largest value is negative, one in 140 has a scale that its values do
    not give back to the bit.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.odd = nn.Parameter(torch.randn(64, 256)), nn.Parameter(torch.randn(509, 613))
        self.small = nn.Parameter(torch.randn(9))


def update_of(model: nn.Module, strategy: Strategy) -> Update:
    weights = Weights(model, strategy.precision)
    weights.place(model, torch.device("cpu"))
    groups = parameter_groups(weights.masters, {"small"}, 0.01)
    return Update(model, weights, make_optimizer(strategy, groups, lr=1e-3, eps=1e-6), clip=1.0)


def step(update: Update, number: int) -> None:
    update.begin(number, 42)
    drawn = torch.Generator().manual_seed(number)
    for name, parameter in update.model.named_parameters():
        gradient = torch.randn(parameter.shape, generator=drawn) * 1e-3
        if name == "table":
            gradient[8:] = 0
        parameter.grad = gradient.to(parameter.dtype)
    update.step()


def kept(update: Update) -> dict[str, Any]:
    found: dict[str, Any] = dict(update.weights.masters)
    for name, master in update.weights.masters.items():
        state = update.optimizer_of(master).state[master]
        found |= {f"{kind} of {name}": value for kind, value in state.items()}
    return copy.deepcopy(found)


def is_same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return bool(one == other)
    raw = [value.detach().contiguous().view(-1).view(torch.uint8) for value in (one, other)]
    return one.dtype == other.dtype and torch.equal(*raw)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not is_same(one[name], other[name])] == []


@pytest.mark.parametrize("strategy", ROWS.values(), ids=list(ROWS))
def test_a_round_trip_changes_no_bit(tmp_path: Path, strategy: Strategy) -> None:
    if strategy.optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    first, second = (update_of(Rows(), strategy) for _ in range(2))
    for number in range(3):
        step(first, number)
    checkpoint.save(tmp_path, 3, first.state(), {"seed": 42})
    found = checkpoint.load_newest(tmp_path, pytest.fail)
    assert found is not None
    checkpoint.restore(found, second)
    assert_same(kept(first), kept(second))
    for number in range(3, 6):
        step(first, number)
        step(second, number)
    assert_same(kept(first), kept(second))


def test_the_bitsandbytes_map_has_no_code_for_a_negative_largest_value() -> None:
    """Why scales are kept: of a block whose largest value is negative, the values alone do not tell the scale."""
    functional = pytest.importorskip("bitsandbytes.functional")
    code = functional.create_dynamic_map(signed=True)
    assert code.max() == 1 and code.min() > -1
