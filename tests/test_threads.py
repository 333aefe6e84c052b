"""Threads beside the one that trains work for the card of their process."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import bigqa.engine
from bigqa.engine.stream.passes import LayerPasses
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


@pytest.mark.parametrize(("device", "chosen"), [("cuda:1", 1), ("cuda", 2), ("cuda:0", 0)])
def test_layers_draw_from_the_generator_of_their_own_card(
    monkeypatch: pytest.MonkeyPatch, device: str, chosen: int
) -> None:
    """Accelerate names no number for the card of a single process: in a notebook it need not be the first."""
    moved: list[tuple[int, str, int]] = []

    class Generator(SimpleNamespace):
        def initial_seed(self) -> int:
            return 10 * self.number

        def get_offset(self) -> int:
            return 4

        def manual_seed(self, seed: int) -> None:
            moved.append((self.number, "seed", seed))

        def set_offset(self, offset: int) -> None:
            moved.append((self.number, "offset", offset))

    monkeypatch.setattr(torch.cuda, "default_generators", [Generator(number=number) for number in range(3)])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    passes: Any = LayerPasses.__new__(LayerPasses)
    passes.link = SimpleNamespace(device=torch.device(device))
    place = passes._drawn()
    passes._seek(place)
    assert place == (10 * chosen, 4) and moved == [(chosen, "seed", place[0]), (chosen, "offset", place[1])]


def test_no_card_of_the_engine_is_the_first_for_want_of_a_number() -> None:
    files = Path(bigqa.engine.__file__).parent.rglob("*.py")
    assert [file.name for file in files if "index or 0" in file.read_text(encoding="utf-8")] == []
