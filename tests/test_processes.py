"""Two real processes of one run, forked: what they add up, and what the main one tells."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import in_processes
from torch import nn

from bigqa.engine.processes import Processes


def _agree(processes: Processes) -> dict[str, Any]:
    processes.wait()
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    wrapped = processes.wrap(model)
    wrapped(torch.full((1, 2), float(processes.rank + 1))).sum().backward()
    assert model.weight.grad is not None
    return {
        "rank": processes.rank,
        "main": processes.is_main,
        "size": (processes.world_size, processes.on_this_machine),
        "sum": processes.sum(torch.tensor([1.0, 10.0 * processes.rank])).tolist(),
        "told": processes.from_main({"step": processes.rank + 7}),
        "gradient": model.weight.grad.tolist(),
    }


def test_two_processes_agree() -> None:
    found = in_processes(_agree)
    assert [one["rank"] for one in found] == [0, 1] and [one["main"] for one in found] == [True, False]
    for one in found:
        assert one["size"] == (2, 2) and one["sum"] == [2.0, 10.0] and one["told"] == {"step": 7}
        assert one["gradient"] == [[1.5, 1.5]]  # averages: the step multiplies by their number


def _wait(processes: Processes) -> float:
    begun = time.monotonic()
    if processes.rank == 1:
        time.sleep(0.5)
    processes.wait()
    return time.monotonic() - begun


def test_who_waits_waits_for_all() -> None:
    assert min(in_processes(_wait)) > 0.3


def test_one_process_has_nobody_to_ask() -> None:
    (found,) = in_processes(_agree, 1)
    assert (found["rank"], found["main"], found["size"]) == (0, True, (1, 1))
    assert found["sum"] == [1.0, 0.0] and found["told"] == {"step": 7} and found["gradient"] == [[1.0, 1.0]]


def test_a_gpu_that_is_not_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigqa.errors import BigqaError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BigqaError, match="--device cpu"):
        Processes("cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("asked", "threads"), [("", 4), ("3", 3)])
def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, device: str, asked: str, threads: int) -> None:
    """Beside a GPU too, where a launcher's one thread would step all that is offloaded."""
    set_to: list[int] = []
    monkeypatch.setenv("BIGQA_THREADS", asked)
    monkeypatch.setattr("bigqa.engine.processes.usable_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    Processes._share_cores(SimpleNamespace(device=torch.device(device), on_this_machine=2))  # type: ignore[arg-type]
    assert set_to == [threads]
