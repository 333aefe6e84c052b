"""Threads beside the one that trains work for the card of their process."""

import threading
from pathlib import Path

import pytest
import torch

import bigqa.engine
from bigqa.engine.threads import thread_of


@pytest.mark.parametrize(("device", "chosen"), [("cpu", []), ("cuda:1", [1]), ("cuda", [2])])
def test_a_thread_says_which_card_it_means(monkeypatch: pytest.MonkeyPatch, device: str, chosen: list[int]) -> None:
    """The one that makes it has said so already."""
    found: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: found.append((threading.current_thread().name, index)))
    with thread_of(torch.device(device), "beside") as thread:
        assert thread.submit(lambda: 7).result() == 7
    assert found == [("beside_0", index) for index in chosen]


def test_no_thread_of_the_engine_is_made_otherwise() -> None:
    files = Path(bigqa.engine.__file__).parent.rglob("*.py")
    made = {file.name for file in files if "ThreadPoolExecutor(" in file.read_text(encoding="utf-8")}
    assert made == {"threads.py"}
