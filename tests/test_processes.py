"""Two real processes of one run, forked: what they add up, and what the main one tells."""

import gc
import os
import time
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import in_processes
from torch import nn

from bigqa.engine.processes import PEERS, Processes, without_peers
from bigqa.errors import BigqaError


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


def _disagree(processes: Processes) -> list[str]:
    told = []
    for value in ("bf16", f"fp{16 * (1 + processes.rank)}"):
        try:
            processes.agree(value, "precision")
        except BigqaError as error:
            told.append(str(error))
    return told


def test_what_machines_must_have_in_common_is_compared_and_all_are_told() -> None:
    """Of two nodes with other cards, or without the other's files."""
    first, second = in_processes(_disagree)
    assert first == ["the processes of this run do not agree on precision: the first has fp16"]
    assert len(second) == 1 and in_processes(_disagree, 1) == [[]]


@pytest.mark.parametrize("given", [{}, {"NCCL_P2P_DISABLE": "0"}, {"NCCL_P2P_DISABLE": "0", "NCCL_IB_DISABLE": "0"}])
@pytest.mark.parametrize("reach", [True, False])
def test_cards_that_cannot_reach_each_other_go_without(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], reach: bool
) -> None:
    """Accelerate would refuse them; what a person said of it stays."""
    for name in PEERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("bigqa.engine.processes.check_cuda_p2p_ib_support", lambda: reach)
    told = without_peers()
    found = {name: os.environ[name] for name in PEERS if name in os.environ}
    missing = [name for name in PEERS if name not in given]
    assert found == given | ({} if reach else dict.fromkeys(missing, "1"))
    assert (told is None) == (reach or not missing)
    assert told is None or all(f"{name}=1" in told for name in missing)
    for name in set(PEERS) - set(given):
        os.environ.pop(name, None)


def test_without_a_gpu_processes_that_were_asked_for_none_are_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--device auto`: as torchrun, accelerate and our own launcher start them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    found = in_processes(_agree, device="auto")
    assert [(one["rank"], one["size"]) for one in found] == [(0, (2, 2)), (1, (2, 2))]
    assert [one["sum"] for one in found] == [[2.0, 10.0]] * 2


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_do_not_see_each_other_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Each would train all of it, into one folder."""
    monkeypatch.setenv(variable, "2")
    monkeypatch.setattr("bigqa.engine.processes.Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(BigqaError, match="started 2 processes, and this one sees 1: each would train"):
        Processes("auto")


def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(BigqaError, match="3 processes on 2 GPUs"):
        Processes("auto")


def _left_behind(processes: Processes) -> list[bool]:
    model = nn.Linear(2, 1)
    wrapped, reference = processes.wrap(model), weakref.ref(model)
    del wrapped, model
    gc.collect()
    found = [reference() is not None]
    processes.close()
    return [*found, reference() is not None]


def test_a_model_goes_with_the_group() -> None:
    """Accelerate keeps what it has wrapped."""
    assert in_processes(_left_behind) == [[True, False]] * 2


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
