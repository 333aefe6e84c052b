"""The engine's parts against hand-worked examples, torch's own and transformers' own results."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from bigqa.engine import checkpoint
from bigqa.engine.build import make_update
from bigqa.engine.optimizers import linear_rate, make_optimizer, parameter_groups, undecayed_names
from bigqa.engine.order import DataOrder, share_of_process
from bigqa.engine.precision import Weights
from bigqa.engine.step import Parts, train_step
from bigqa.errors import BigqaError
from bigqa.strategy import Strategy

FP32 = Strategy(precision="fp32", device="cpu")


class Regression:
    """The smallest task: a window's loss is the squared error of a linear model."""

    def collate(self, rows: list) -> dict:
        return {
            "input_ids": torch.tensor([row["x"] for row in rows]),
            "y": torch.tensor([row["y"] for row in rows]),
        }

    def loss_sum(self, model: nn.Module, batch: dict) -> torch.Tensor:
        return (model(batch["input_ids"]).squeeze(-1) - batch["y"]).square().float().sum()


def parts_for(model: nn.Module, strategy: Strategy = FP32, lr: float = 0.1, clip: float = 1e9) -> Parts:
    undecayed = undecayed_names(model)
    weights = Weights(model, strategy.precision)
    groups = parameter_groups(weights.masters, undecayed, 0.01)
    update = make_update(
        model, strategy, weights, lambda groups: make_optimizer(strategy, groups, lr=lr, eps=1e-6), groups=groups,
        clip=clip,
    )  # fmt: skip
    return Parts(model=model, update=update, task=Regression())


def batched(count: int, size: int) -> list[list[int]]:
    return [list(range(count))[begin : begin + size] for begin in range(0, count, size)]


def rows(count: int) -> list:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator)
    return [{"x": line.tolist(), "y": float(line.sum())} for line in x]


def test_every_window_is_seen_once_in_each_epoch_the_small_last_batch_too() -> None:
    order = DataOrder(num_windows=10, global_batch=4, seed=1)
    assert order.steps_per_epoch == 3
    assert order.num_steps(2, None) == 6
    assert order.num_steps(2, 5) == 5
    first = [order.batch(step) for step in range(3)]
    second = [order.batch(step) for step in range(3, 6)]
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_processes_share_a_batch_without_loss_or_overlap(world_size: int) -> None:
    lengths = [5, 9, 1, 7, 7, 3]
    shares = [share_of_process(lengths, rank, world_size) for rank in range(world_size)]
    assert sorted(chain(*shares)) == list(range(6))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_schedule_is_that_of_transformers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 3, 20)
    for step in range(20):
        assert linear_rate(step, 20, 3) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_biases_and_norms_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1, bias=False))
    assert undecayed_names(model) == {"0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 7])
def test_accumulation_gives_the_step_of_the_whole_batch(micro_batch: int) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(3, 1)
    ours = nn.Linear(3, 1)
    ours.load_state_dict(plain.state_dict())
    data, task = rows(7), Regression()
    optimizer = torch.optim.AdamW(
        [{"params": [plain.weight]}, {"params": [plain.bias], "weight_decay": 0.0}],
        lr=0.1,
        weight_decay=0.01,
        eps=1e-6,
    )
    for _ in range(3):
        optimizer.zero_grad()
        expected = task.loss_sum(plain, task.collate(data)) / 7
        expected.backward()
        expected_norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    parts = parts_for(ours, clip=0.5)
    for _ in range(3):
        batches = [task.collate([data[i] for i in part]) for part in batched(7, micro_batch)]
        loss, norm = train_step(parts, batches, 7)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-5)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_small_updates_are_not_lost_to_bf16() -> None:
    model = nn.Linear(3, 1)
    nn.init.constant_(model.weight, 1.0)
    parts = parts_for(model, strategy=Strategy(precision="bf16"), lr=1e-4)
    assert model.weight.dtype == torch.bfloat16
    for _ in range(50):
        batch = {"input_ids": torch.ones(1, 3, dtype=torch.bfloat16), "y": torch.zeros(1)}
        train_step(parts, [batch], 1)
    # One step of 1e-4 is below bf16's resolution at 1.0 (2**-8); fifty of them are not.
    assert parts.update.weights.masters["weight"].max().item() == pytest.approx(1 - 50e-4, abs=5e-4)
    assert model.weight.max().item() < 1.0


def _trained(folder: Path, steps: int) -> Parts:
    torch.manual_seed(0)
    parts, task = parts_for(nn.Linear(3, 1)), Regression()
    for step in range(steps):
        train_step(parts, [task.collate(rows(4))], 4)
        checkpoint.save(folder, step + 1, parts.update.state(), {"seed": 1})
    return parts


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    _trained(tmp_path / "a", 3)
    unbroken = _trained(tmp_path / "b", 5)
    found = checkpoint.load_newest(tmp_path / "a", pytest.fail)
    assert found is not None and found.step == 3
    parts, task = parts_for(nn.Linear(3, 1)), Regression()
    checkpoint.restore(found, parts.update)
    for _ in range(2):
        train_step(parts, [task.collate(rows(4))], 4)
    for name, weight in unbroken.update.weights.masters.items():
        assert torch.equal(weight, parts.update.weights.masters[name])


@pytest.mark.parametrize("name", ["weights.safetensors", "adam.safetensors", "state.json", "checksums.json"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    _trained(tmp_path, 2)
    file = tmp_path / "step-00000002" / name
    file.write_bytes(file.read_bytes()[:-5])
    said: list[str] = []
    found = checkpoint.load_newest(tmp_path, said.append)
    assert found is not None and found.step == 1
    assert len(said) == 1 and str(tmp_path / "step-00000002") in said[0]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    _trained(tmp_path, 1)
    found = checkpoint.load_newest(tmp_path, pytest.fail)
    assert found is not None
    other = parts_for(nn.Sequential(nn.Linear(3, 1)))
    with pytest.raises(BigqaError, match="another model"):
        checkpoint.restore(found, other.update)


def test_old_checkpoints_go(tmp_path: Path) -> None:
    _trained(tmp_path, 4)
    checkpoint.keep_last(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    assert json.loads((tmp_path / "step-00000004" / "state.json").read_text())["step"] == 4
