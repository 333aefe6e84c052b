"""Several processes take one step: the one that a single process takes, with an optimizer that hides nothing."""

from typing import Any

import pytest
import torch
from forked import in_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigqa.engine.loop.order import share_of_process
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.optim.precision import Weights
from bigqa.engine.optim.update import Update

WINDOWS, STEPS, RATE = 7, 3, 0.05
CLIPS = (1e9, 0.5)
"""The largest norm of a gradient: never met, and always."""


class Squares:
    """A window's loss is the squared distance of a small network's answer."""

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["input_ids"]).squeeze(-1) - batch["y"]).square().sum()


def stepped(rank: int, world_size: int, clip: float) -> dict[str, Any]:
    """Take steps of plain SGD on this process's share of the windows; return weights, and the norm of each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    x = torch.randn(WINDOWS, 3)
    weights = Weights(model, "fp32")
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    update = Update(wrapped, weights, optimizer, clip=clip, world_size=world_size)
    parts: Any = Parts(model=wrapped, update=update, task=Squares())  # type: ignore[arg-type]
    mine = share_of_process([1] * WINDOWS, rank, world_size)
    batches = [{"input_ids": x[part], "y": x[part].sum(1)} for part in (mine[:2], mine[2:])]
    norms = [train_step(parts, batches, WINDOWS)[1].item() for _ in range(STEPS)]
    return {"norms": norms, "weights": [p.detach().numpy().copy() for p in model.parameters()]}


def test_gradients_are_summed_over_the_processes() -> None:
    of_each = in_processes(lambda processes: [stepped(processes.rank, processes.world_size, clip) for clip in CLIPS])
    alone = [stepped(0, 1, clip) for clip in CLIPS]
    for of_rank in of_each:
        for found, expected in zip(of_rank, alone, strict=True):
            assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
            for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
                assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
