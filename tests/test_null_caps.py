"""Cells on cards of the predicted size: which are drawn, what is said of them, and with how little a step gets by."""

import pytest

from benchmarks.null_caps import Capped, drawn, measure, told
from benchmarks.null_cells import MODELS, Cell
from bigqa.memory.allocator import CachingAllocator, OutOfMemory
from bigqa.memory.cards import Card
from bigqa.memory.events import Event, Stream, sizes_on
from bigqa.memory.replay import peaks
from bigqa.memory.whole import smallest_bytes
from bigqa.nullgpu.cards import NullGpu
from bigqa.tasks.qa.task import QuestionAnswering
from bigqa.units import MIB


def test_cells_are_of_every_strategy_model_and_size_of_a_world() -> None:
    cells = drawn()
    assert cells == drawn() and len({cell.key for cell in cells}) == len(cells) >= 30
    assert {cell.model for cell in cells} == set(MODELS) and len({cell.strategy for cell in cells}) >= 20
    assert len({cell.card for cell in cells}) >= 5 and {cell.gpus for cell in cells} > {1}


def test_a_cell_is_run_on_cards_of_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("enliple-small", "plain", "T4", 1, 384, accumulating=False)
    asked = []

    def run(one: Cell, gpu: NullGpu) -> str:
        assert one is cell and gpu.context_bytes == 0
        asked.append(gpu.total_bytes)
        return "ok" if gpu.total_bytes > 100 * MIB else "out of memory"

    monkeypatch.setattr("benchmarks.null_caps.sizes_of", lambda one: (120 * MIB, 100 * MIB))
    found = measure(cell, run)
    assert asked == [int(120 * 1.01 * MIB), 101 * MIB, 97 * MIB]
    assert told([found]).splitlines() == [
        "On a card of reserved and 1%: 1 of 1 ended.",
        "On a card of smallest and 1%: 1 of 1 ended.",
        "On a card of smallest less 3%: 1 of 1 ran out of memory.",
    ]
    wrong = Capped("a", 1, None, {"reserved and 1%": "out of memory"})
    assert "reserved and 1%: 1 of 2" in told([found, wrong]) and "  a, reserved and 1%: out of memory" in told([wrong])


def test_a_step_gets_by_with_less_than_it_reserves_with_room() -> None:
    """The first of two blocks is freed before the second is made: with room both are kept, else it is given back."""
    sizes = [30 * MIB, 0, 40 * MIB, 0]
    names = [1, 1, 2, 2]
    events = [Event(name, size, "forward", "") for name, size in zip(names, sizes, strict=True)]
    assert smallest_bytes(Stream(events=events), Card()) == 40 * MIB
    for limit, fits in ((40 * MIB, True), (40 * MIB - 1, False)):
        allocator = CachingAllocator(limit)
        allocator.allocate(1, sizes[0])
        allocator.free(1)
        if fits:
            allocator.allocate(2, sizes[2])
        else:
            with pytest.raises(OutOfMemory):
                allocator.allocate(2, sizes[2])


def test_a_step_ends_as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch recorded it: three figures, the micro-batch freed, the next one made, behind the first step's state."""
    log: list[str] = []

    class Logging(CachingAllocator):
        def allocate(self, key: int, size_bytes: int, stream: int = 0) -> None:
            log.append(f"+{size_bytes}")
            super().allocate(key, size_bytes, stream)

        def free(self, key: int) -> None:
            super().free(key)
            log.append("-")

    monkeypatch.setattr("bigqa.memory.replay.CachingAllocator", Logging)
    events = [
        Event(1, 100, "model", ""),
        Event(2, 30, "ready", ""),
        Event(3, 7, "forward", ""),
        Event(3, 0, "clip", ""),
    ]
    stream = Stream(events=events, batch=(2,))
    peaks(stream, sizes_on(stream, Card()))
    step = ["+7", "-", "+8", "+8", "+8", "-", "-", "-", "-", "+30"]
    assert log == ["+100", "+30", *step, *step]


def test_an_example_has_the_order_of_a_micro_batch_of_rows() -> None:
    """In which they come to the device: where a small block lies decides on segments."""
    row = {"input_ids": [1] * 8, "token_type_ids": [0] * 8, "start": 1, "end": 3}
    for takes_types in (True, False):
        task = QuestionAnswering(0, takes_types)
        for packed, made in ((True, task.pack([row])), (False, task.collate([row]))):
            example = task.example(1, 8, packed=packed)
            assert list(example) == list(made)
            assert [one.dtype for one in example.values()] == [one.dtype for one in made.values()]
