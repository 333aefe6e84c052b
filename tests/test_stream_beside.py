"""Streamed layers in several processes, and what is done beside the computation."""

import threading
import time
import zlib
from typing import Any

import pytest
import torch
from forked import in_processes
from streaming import CONFIGS, EQUAL, MICRO_BATCHES, PLAIN, SMALL, STREAM, WINDOWS, batches, learned, off, parts_of
from transformers import BertConfig

from bigqa.engine.loop.order import mix_seed
from bigqa.engine.loop.step import train_step
from bigqa.engine.processes import Processes
from bigqa.engine.stream.beside import Beside
from bigqa.engine.stream.link import _InPlace
from bigqa.engine.stream.shelf import Shelf
from bigqa.engine.stream.staging import Bringing


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes("cpu")


def _shared_out(processes: Processes) -> dict[str, Any]:
    """Of one process: its windows are the first micro-batches of a step, or the others."""
    found, config = {}, CONFIGS["bert"]()
    random = STREAM.model_copy(update={"precision": "bf16-sr"})
    for name, strategy in (("plain", PLAIN), ("fp32", STREAM), ("random", random)):
        parts = parts_of(config, strategy, processes)
        losses = []
        for step in range(2):
            parts.update.set_rate(5e-3)
            parts.update.begin(step, 42)
            torch.manual_seed(mix_seed(42, step))
            mine = batches(config, step, packed=True)[processes.rank :: processes.world_size]
            loss, norm = train_step(parts, mine, MICRO_BATCHES * WINDOWS)
            losses.append(torch.stack([processes.sum(loss.detach()), norm]))
        weights = {key: zlib.crc32(one.detach().numpy().tobytes()) for key, one in parts.update.state().weights.items()}
        found[name] = torch.stack(losses).tolist(), weights
    return found


def test_two_processes_stream_their_own_windows_and_add_gradients_up_on_the_host() -> None:
    """One has two micro-batches of three, and looks other rows up."""
    first, second = in_processes(_shared_out)
    assert first == second  # losses, norms, and every weight
    plain, streamed, random = (torch.tensor(first[name][0]).double() for name in ("plain", "fp32", "random"))
    assert off(streamed, plain) < EQUAL  # DistributedDataParallel's
    assert off(random[:, 0], plain[:, 0]) < 0.2


def test_embeddings_are_in_the_models_order(processes: Processes) -> None:
    """Which every process has; that of a set is of each process's own, and a forked one's is its parent's."""
    config = CONFIGS["bert"]()
    passes: Any = parts_of(config, STREAM, processes).passes
    kinds = ("word", "position", "token_type")
    assert passes.layers.tables == tuple(f"bert.embeddings.{kind}_embeddings.weight" for kind in kinds)


@pytest.mark.parametrize("axes", [{}, {"precision": "bf16-sr"}])
def test_a_thread_beside_the_computation_steps_alike(axes: dict[str, Any], processes: Processes) -> None:
    """As on a GPU, where two layers' gradients have places: the third's come when the first layer has been stepped."""
    strategy, config = STREAM.model_copy(update=axes), BertConfig(**SMALL | {"num_hidden_layers": 4})
    there, beside = parts_of(config, strategy, processes), parts_of(config, strategy, processes)
    update: Any = beside.update
    assert update.beside.ahead == (1 if axes else None)
    update.beside.threaded = True
    taken, threads = update._take, set()

    def take(*args: Any) -> None:
        threads.add(threading.current_thread())
        taken(*args)

    update._take = take
    once, again = (learned(one, config, 0, 2, packed=True) for one in (there, beside))
    assert torch.equal(once, again) and len(threads) == 1 and threading.current_thread() not in threads


def test_what_fails_beside_the_computation_is_told_and_what_waits_is_waited_for() -> None:
    ran: list[int] = []

    def slow() -> None:
        time.sleep(0.05)
        ran.append(1)

    beside = Beside(torch.device("cpu"), ahead=1)
    beside.threaded = True
    beside.begin(slow)
    beside.begin(lambda: ran.append(2))
    assert ran[0] == 1  # when the second begins
    beside.begin(lambda: ran.remove(7))
    with pytest.raises(ValueError, match="not in list"):
        beside.done()
    beside.begin(lambda: ran.remove(7))
    beside.drop()
    beside.done()


class Sent(_InPlace):
    """Copies to a device, of which each is known by a word; and which of them the host has waited for."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.settled: list[Any] = []

    def arrive(self, to: torch.Tensor, source: torch.Tensor, **options: Any) -> Any:
        super().arrive(to, source)
        return f"copy {self.bytes_in}"

    def settle(self, event: Any) -> None:
        self.settled.append(event)


def test_a_pinned_place_is_filled_once_nothing_is_copied_from_it_though_it_was_dropped() -> None:
    link = Sent()
    bringing = Bringing(Shelf(link), 8, torch.float32, 1, staged=True)
    to = torch.zeros(8)
    for number in range(3):
        bringing.begin(0, to, torch.full((8,), float(number)))
        if number == 1:
            bringing.drop()
    assert link.settled == [None, "copy 32", "copy 64", None] and to.tolist() == [2.0] * 8
