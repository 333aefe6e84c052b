"""The engine's parts against hand-worked examples, torch's own and transformers' own results."""

import json
import weakref
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import get_linear_schedule_with_warmup

from bigqa.engine import build
from bigqa.engine.build import make_update, strategy_of
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.order import DataOrder, share_of_process
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.optim import moments
from bigqa.engine.optim.optimizers import linear_rate, make_optimizer, parameter_groups, undecayed_names
from bigqa.engine.optim.precision import Weights
from bigqa.errors import BigqaError
from bigqa.settings import Settings
from bigqa.strategy import STRATEGIES, Precision, Strategy

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


def _cut(content: bytes) -> bytes:
    return content[:-5]


def _flipped(content: bytes) -> bytes:
    """One bit is another, in a value: nothing but a checksum can tell."""
    is_json = content.startswith(b"{")
    place = max(content.rfind(digit) for digit in b"0123456789") if is_json else len(content) - 1
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [_cut, _flipped])
@pytest.mark.parametrize("name", ["weights.safetensors", "adam.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    _trained(tmp_path, 2)
    file = tmp_path / "step-00000002" / name
    file.write_bytes(damage(file.read_bytes()))
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


@pytest.mark.parametrize(
    ("row", "asked", "best", "expected"),
    [
        ("recompute", "auto", "bf16", "bf16"),
        ("recompute", "auto", "fp16", "fp16"),
        ("recompute", "auto", "fp32", "fp32"),
        ("recompute", "fp32", "bf16", "fp32"),
        ("recompute", "bf16", "fp32", "bf16"),
        ("plain-fp32", "auto", "bf16", "fp32"),
        ("stochastic", "auto", "fp16", "bf16-sr"),
        ("stochastic", "fp32", "bf16", "bf16-sr"),
        (None, "auto", "bf16", "bf16"),
    ],
)
def test_a_strategys_precision_is_the_one_asked_for_or_the_devices_best(
    monkeypatch: pytest.MonkeyPatch, row: str | None, asked: str, best: Precision, expected: Precision
) -> None:
    monkeypatch.setattr(build, "choose_precision", lambda wanted, device: best if wanted == "auto" else wanted)
    settings = Settings.model_validate(
        {"model": "tiny", "train_file": "t", "out": "o", "precision": asked, "strategy": row and STRATEGIES[row]}
    )
    assert strategy_of(settings, torch.device("cpu")).precision == expected


def test_a_saved_file_is_the_librarys_and_holds_every_shape(tmp_path: Path) -> None:
    kept = {
        "matrix": torch.randn(3, 5),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.5),
        "turned": torch.randn(4, 2).t(),
    }
    low = {name: tensor.bfloat16() for name, tensor in kept.items()}
    checkpoint.write_tensors(tmp_path / "t.safetensors", {name: tuple(t.shape) for name, t in low.items()}, low)
    found = load_file(tmp_path / "t.safetensors")
    assert set(found) == set(kept)
    assert all(torch.equal(found[name], low[name].float()) for name in kept)


def test_saving_never_holds_more_than_one_moment_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit moments of six layers: as fp32 all at once they would be four times what the run holds."""
    model = nn.Sequential(*(nn.Linear(64, 128) if i % 2 == 0 else nn.Linear(128, 64) for i in range(6)))
    parts = parts_for(model, strategy=Strategy(precision="fp32", optimizer="adamw8bit", device="cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    parts.update.step()
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    decoded = moments._decoded

    def watched(state: dict[str, Any], number: str) -> torch.Tensor:
        nonlocal most
        value = decoded(state, number)
        if value is not state.get(f"state{number}"):
            alive.append(weakref.ref(value))
        most = max(most, sum(one() is not None for one in alive))
        return value

    monkeypatch.setattr(moments, "_decoded", watched)
    checkpoint.save(tmp_path, 1, parts.update.state(), {"seed": 1})
    assert len(alive) == 12 and most <= 2  # of the six matrices; one is made while the one before it goes
    found = checkpoint.load_newest(tmp_path, pytest.fail)
    assert found is not None
    for name, moment in parts.update.state().moments.items():
        assert torch.equal(found.state.moments[name], moment)


def test_what_a_killed_save_left_goes(tmp_path: Path) -> None:
    _trained(tmp_path, 1)
    (tmp_path / ".step-00000002.abc.tmp").mkdir()
    (tmp_path / ".step-00000002.abc.tmp" / "weights.safetensors").write_bytes(b"half")
    checkpoint.keep_last(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_old_checkpoints_go(tmp_path: Path) -> None:
    _trained(tmp_path, 4)
    checkpoint.keep_last(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    assert json.loads((tmp_path / "step-00000004" / "state.json").read_text())["step"] == 4
