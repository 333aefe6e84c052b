"""Several processes take one step: the one that a single process takes, with an optimizer that hides nothing.

Each process imports this file: it imports little.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
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
    return {"norms": norms, "weights": [p.detach().clone() for p in model.parameters()]}


def _worker(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = (Path(folder) / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    torch.save([stepped(rank, world_size, clip) for clip in CLIPS], Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_gradients_are_summed_over_the_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(2, str(tmp_path)), nprocs=2, daemon=True)
    alone = [stepped(0, 1, clip) for clip in CLIPS]
    for rank in range(2):
        for found, expected in zip(torch.load(tmp_path / f"{rank}.pt"), alone, strict=True):
            assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
            for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
