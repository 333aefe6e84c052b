"""Several processes take one step: the one that a single process takes, with an optimizer that hides nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import FP32, Regression, rows
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bigqa.engine.build import make_update
from bigqa.engine.loop.order import share_of_process
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.optim.precision import Weights

WINDOWS, STEPS, RATE = 7, 3, 0.05
CLIPS = (1e9, 0.5)
"""The largest norm of a gradient: never met, and always."""


def stepped(rank: int, world_size: int, clip: float) -> dict[str, Any]:
    """Take steps of plain SGD on this process's share of the windows; return weights, and the norm of each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    weights, task = Weights(model, "fp32"), Regression()
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    update = make_update(
        wrapped, FP32, weights, lambda groups: torch.optim.SGD(groups, lr=RATE),
        groups=[{"params": list(weights.masters.values())}], clip=clip, world_size=world_size,
    )  # fmt: skip
    parts = Parts(model=wrapped, update=update, task=task)
    data = rows(WINDOWS)
    mine = share_of_process([1] * WINDOWS, rank, world_size)
    batches = [task.collate([data[i] for i in part]) for part in (mine[:2], mine[2:])]  # 4 windows and 3: 2 + 2, 2 + 1
    norms = [train_step(parts, batches, WINDOWS)[1].item() for _ in range(STEPS)]
    return {"norms": norms, "weights": [p.detach().clone() for p in model.parameters()]}


def _worker(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = (Path(folder) / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    torch.save([stepped(rank, world_size, clip) for clip in CLIPS], Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_gradients_are_summed_over_the_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(2, str(tmp_path)), nprocs=2)
    alone = [stepped(0, 1, clip) for clip in CLIPS]
    for rank in range(2):
        for found, expected in zip(torch.load(tmp_path / f"{rank}.pt"), alone, strict=True):
            assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
            for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
