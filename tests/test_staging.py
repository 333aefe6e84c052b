"""Batches on their way to a GPU: two blocks of pinned memory by turns, none written to while it is copied from."""

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from null_gpu import on_null_gpu

from bigqa.engine import pinned
from bigqa.engine.loop import staging
from bigqa.engine.loop.feed import Feed
from bigqa.engine.loop.order import DataOrder
from bigqa.engine.loop.staging import BLOCKS, Staging, laid_bytes, staged_bytes
from bigqa.engine.pinned import whole_pages
from bigqa.memory.estimate import Estimator
from bigqa.models.sources import load_config, resolve
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES
from bigqa.tasks.qa.task import QuestionAnswering
from bigqa.tasks.rows import Rows


class Event:
    """Done once it is waited for."""

    made: ClassVar[list["Event"]] = []

    def __init__(self, **_: Any) -> None:
        self.done = False
        self.made.append(self)

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None:
        self.done = True


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, int]]:
    """A card for which all that is pinned is in the dictionary: address -> bytes."""
    held: dict[int, int] = {}
    runtime = SimpleNamespace(
        cudaHostRegister=lambda at, size, _: held.update({at: size}) or 0,
        cudaHostUnregister=lambda at: held.pop(at) * 0,
    )
    stream = SimpleNamespace(device=None, synchronize=lambda: None)
    monkeypatch.setattr(Event, "made", [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", lambda code: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(pinned, "_now_bytes", 0)
    monkeypatch.setattr(pinned, "_most_bytes", 0)
    yield held


def batches(step: int, count: int = 3) -> list[dict[str, torch.Tensor]]:
    """Of every kind of tensor that tasks make, none of a length that is a multiple of anything."""
    return [
        {
            "input_ids": torch.full((1, 37 + number), step),
            "attention_mask": torch.tensor([True] * (step % 2) + [False] * 4),
            "weight": torch.tensor(step / 2),
            "ends": torch.tensor([0, step, number], dtype=torch.int32),
            "label": torch.zeros(0, dtype=torch.long),
        }
        for number in range(count)
    ]


def same(one: Any, other: Any) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
        for a, b in zip(one, other, strict=True)
    )


def test_a_block_is_written_to_once_nothing_is_copied_out_of_it(card: dict[int, int]) -> None:
    made, laid = Staging(torch.device("cpu")), {}
    for step in range(5):
        laid[step] = made.lay(step, batches(step))
        assert [event.done for event in Event.made] == [number <= step - BLOCKS for number in range(step)]
        assert same(laid[step], batches(step)) and (not step or same(laid[step - 1], batches(step - 1)))
        assert same(made.send(step, laid[step]), batches(step))
    del laid
    assert sum(card.values()) == pinned.most_pinned_bytes() == BLOCKS * whole_pages(laid_bytes(batches(1)))
    del made
    gc.collect()
    assert not card


def test_what_is_laid_anew_for_the_same_step_is_that(card: dict[int, int]) -> None:
    """As where a run is taken up elsewhere: what was made ahead was for nothing."""
    made = Staging(torch.device("cpu"))
    made.lay(1, batches(1))
    again = made.lay(3, batches(3, count=5))  # larger: another block in its place
    assert same(made.send(3, again), batches(3, count=5)) and len(card) == 1


def test_a_feed_lays_and_sends(card: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"input_ids": [[5] * 9, [6] * 4, [7] * 6], "token_type_ids": [[0] * 9, [0] * 4, [0] * 6],
            "start": [0, 1, 2], "end": [1, 2, 3]}  # fmt: skip
    order = DataOrder(num_windows=3, global_batch=2, seed=1)
    found = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(staging.Staging, "send", lambda self, step, laid: laid)
        task = QuestionAnswering(0, True)
        feed = Feed(order, Rows.of_columns(rows), [9, 4, 6], task, tokens=16, packs=True, device=torch.device(device))
        found.append([[{name: one.clone() for name, one in b.items()} for b in feed.take(step)] for step in range(3)])
        feed.close()
    assert all(same(one, other) for one, other in zip(*found, strict=True))
    assert pinned.most_pinned_bytes() > 0


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    return estimator_for(load_config(resolve("tiny")))


@pytest.mark.parametrize(("name", "accumulating"), [("plain", True), ("zero2", False)])
def test_what_is_pinned_for_batches_is_predicted(estimator: Estimator, name: str, accumulating: bool) -> None:
    asked: Any = {"accumulating": accumulating, "micro_batches": 3 if accumulating else None}
    found = estimator.estimate(STRATEGIES[name], 2, 64, **asked)
    full = [estimator.task.example(2, 64, packed=True)] * (3 if accumulating else 1)
    assert found.pinned_bytes == staged_bytes(full) == BLOCKS * whole_pages(laid_bytes(full)) > 0


IN_A_THREAD = """
import ctypes, json, threading, torch
from bigqa.engine.pinned import CudaPinning, PinnedPool
class Attributes(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("device", ctypes.c_int), ("at", ctypes.c_void_p), ("host", ctypes.c_void_p),
                ("reserved", ctypes.c_long * 8)]
torch.cuda.set_device(1)
pool, found = PinnedPool(CudaPinning(torch.cuda.current_stream())), Attributes()
def work():
    global lent
    lent = pool.lend(4096)
thread = threading.Thread(target=work)
thread.start()
thread.join()
runtime = ctypes.CDLL("libcudart.so.13")
runtime.cudaPointerGetAttributes(ctypes.byref(found), ctypes.c_void_p(lent.tensor.data_ptr()))
print(json.dumps([found.type, found.device]))
"""


@pytest.mark.nullgpu
def test_a_thread_pins_for_the_card_of_its_process() -> None:
    """A thread's current card is the first, whatever the process's is: there would be a context on it for nothing."""
    assert on_null_gpu(IN_A_THREAD, count=2) == [1, 1]
