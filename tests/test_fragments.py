"""Tensors of several processes are put together in host memory: whole, to the bit, and a little at a time."""

from typing import Any

import pytest
import torch
from forked import in_processes

from bigqa.engine import fragments
from bigqa.engine.fragments import whole_on_first
from bigqa.engine.processes import Processes

SIZES = [0, 7, 3]
"""Of each process's part."""


def whole() -> torch.Tensor:
    found = torch.arange(10.0) / 3
    found[[0, 8]] = torch.tensor([-0.0, float("nan")])
    return found


def _put_together(processes: Processes) -> Any:
    fragments.AT_ONCE = 4
    start = sum(SIZES[: processes.rank])
    part = whole()[start : start + SIZES[processes.rank]] if SIZES[processes.rank] else None
    found = whole_on_first(part, start, 10, processes.device)
    return None if found is None else found.view(torch.int32).tolist()


def test_parts_make_the_whole_on_the_first_process_to_the_bit() -> None:
    expected = whole().view(torch.int32).tolist()
    assert in_processes(_put_together, 3) == [expected, None, None]


def test_one_process_asks_nothing_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    part = torch.ones(5)
    found = whole_on_first(part, 0, 5, torch.device("cuda"))
    assert found is not None and torch.equal(found, part) and found.data_ptr() != part.data_ptr()
