"""Pinned memory of our own: by the page, used again in order, and given back; what is fetched in vain is let go of."""

import gc
import mmap
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from null_gpu import on_null_gpu
from torch import nn

from bigqa.engine import offload, pinned
from bigqa.engine.loop.step import Parts, accumulate
from bigqa.engine.offload import MIN_BYTES, ON_THEIR_WAY, ActivationOffload
from bigqa.engine.pinned import PinnedPool, whole_pages
from bigqa.engine.recovery import OutOfMemory
from bigqa.engine.stream import link
from bigqa.speed import card

PAGE = mmap.PAGESIZE


class Watched:
    """Pins nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.now: dict[int, int] = {}
        self.most = self.count = 0

    def pin(self, address: int, size_bytes: int) -> bool:
        assert address % PAGE == 0 and size_bytes % PAGE == 0
        self.now[address] = size_bytes
        self.count += 1
        self.most = max(self.most, sum(self.now.values()))
        return True

    def unpin(self, address: int) -> None:
        del self.now[address]


def used(pool: PinnedPool, sizes: list[int]) -> None:
    """Go through a pass: all are lent at once, and none at its end."""
    pool.begin()
    lent = [pool.lend(size) for size in sizes]
    assert [one.tensor.numel() for one in lent] == sizes
    for number, one in enumerate(lent):
        one.tensor.fill_(number)
    assert [int(one.tensor[-1]) for one in lent] == list(range(len(sizes)))  # no two share a page


def test_blocks_are_exact_and_serve_again() -> None:
    watched = Watched()
    pool = PinnedPool(watched)
    sizes = [3 * PAGE, 5 * PAGE - 1, 3 * PAGE]
    for _ in range(3):
        used(pool, sizes)
    assert (watched.most, watched.count) == (11 * PAGE, 3)
    assert whole_pages(5 * PAGE - 1) == 5 * PAGE


def test_a_block_grows_with_what_is_asked_for_and_never_both_are_there() -> None:
    watched = Watched()
    pool = PinnedPool(watched)
    for sizes in ([2 * PAGE, 4 * PAGE], [3 * PAGE, 3 * PAGE], [2 * PAGE], [3 * PAGE, 4 * PAGE, PAGE]):
        used(pool, sizes)
    assert (watched.most, watched.count) == (8 * PAGE, 4)
    del pool
    gc.collect()
    assert watched.now == {}


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTFORK"), reason="Linux")
def test_no_fork_shares_pinned_pages() -> None:
    """Else a page that is written to after a fork is another than the one that the GPU copies to."""
    pool = PinnedPool(Watched())
    pool.begin()
    lent = pool.lend(PAGE)
    smaps = Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace")
    own = smaps[smaps.index(f"{lent.tensor.data_ptr():x}-") :]
    assert " dc" in next(line for line in own.splitlines() if line.startswith("VmFlags"))


def test_what_is_still_lent_is_not_lent_again() -> None:
    watched = Watched()
    pool = PinnedPool(watched)
    pool.begin()
    first = pool.lend(PAGE)
    first.tensor.fill_(7)
    pool.begin()
    second = pool.lend(PAGE)
    second.tensor.fill_(9)
    assert int(first.tensor[0]) == 7 and len(watched.now) == 2
    del first
    gc.collect()
    assert len(watched.now) == 1


def test_the_most_that_was_pinned_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "_most_bytes", 0)
    monkeypatch.setattr(pinned, "_now_bytes", 0)
    pool = PinnedPool(Watched())
    used(pool, [PAGE, PAGE])
    del pool
    gc.collect()
    assert pinned.most_pinned_bytes() == pinned.pinned_by_all() == 2 * PAGE and pinned._now_bytes == 0


class Dead(torch.autograd.Function):
    """Keeps something that its backward pass does not ask for."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(extra)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, None


def test_what_was_fetched_ahead_and_never_asked_for_is_let_go_of() -> None:
    x = torch.ones(MIN_BYTES // 4, requires_grad=True)
    sent = ActivationOffload(nn.Module())
    with sent.keeping():
        y = Dead.apply(x, torch.ones(MIN_BYTES // 4))
        for _ in range(2 * ON_THEIR_WAY):
            y = y.sin()
    y.sum().backward()
    assert any(kept.storage is not None for kept in sent._kept)
    sent.settle()
    assert all(kept.storage is None and kept.copied is None for kept in sent._kept)


@pytest.mark.parametrize("passes", ["forward", "backward"])
def test_a_pass_that_fails_leaves_nothing_on_the_device(passes: str) -> None:
    """Saving comes next, and wants what is left of it; and copies into it may be on their way."""

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            if passes == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            raise torch.OutOfMemoryError("CUDA out of memory")

    class Sines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(MIN_BYTES // 4))

        def forward(self) -> torch.Tensor:
            y = self.weight * 2
            for number in range(4 * ON_THEIR_WAY):
                y = y.sin() if number != 2 * ON_THEIR_WAY else Failing.apply(y)
            return y.sum()

    model = Sines()
    sent = ActivationOffload(model)
    task = SimpleNamespace(loss_sum=lambda model, batch: model())
    update = SimpleNamespace(micro_batch=lambda **_: nullcontext(), backward=lambda loss: loss.backward())
    parts = Parts(model=model, update=update, task=task, offload=sent)  # type: ignore[arg-type]
    with pytest.raises(torch.OutOfMemoryError):
        accumulate(parts, [{"input_ids": torch.zeros(1)}], 1)
    assert sent.sent and all(kept.storage is None for kept in sent._kept)


STEPS = """
import json, tempfile, torch, ctypes
from pathlib import Path
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.pinned import pinned_by_all
from bigqa.engine.processes import Processes
from bigqa.models.sources import load_config, resolve
from bigqa.plan.planner import estimator_for
library = ctypes.CDLL("libcuda.so.1")
library.null_most_of.restype = ctypes.c_size_t
axes = rows_on("cuda", "bf16", ("offload-activations",))["offload-activations"]
case = Case(model="enliple-small", strategy="offload-activations", axes=axes, seq_len=384, micro_batch=5,
            global_batch=10, steps=2)
folder = Path(tempfile.mkdtemp())
settings, processes = worker.settings_of(case, folder), Processes("cuda")
training = worker.training_of(case, settings, processes, Silent())
fit(training)
estimator = estimator_for(load_config(resolve("enliple-small")))
predicted = estimator.estimate(axes, 5, 384, accumulating=True, whole=True).pinned_bytes
print(json.dumps([sum(training.parts.offload.sent), predicted, library.null_most_of(2), pinned_by_all()]))
"""
FIGURES = 8 * 4096
"""What torch pins for the numbers of a step, of which a few may be on their way at once: a page of each here."""


@pytest.mark.nullgpu
@pytest.mark.parametrize("bound", ["least", "most"])
def test_what_is_pinned_is_what_was_predicted(bound: str) -> None:
    """Two micro-batches a step, three steps: torch's own blocks would be powers of two, and more of them each time.

    Steps are enough for both blocks of batches, whichever of two threads is first.
    """
    sent, predicted, found, counted = on_null_gpu(STEPS, bound=bound)
    assert 0 <= found - predicted <= FIGURES and abs(counted - found) <= FIGURES
    assert sent < predicted < 1.002 * sent + 2**20


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A card whose answers to `cudaHostRegister` are in the list; what is asked for and let go of is counted."""
    answers: list[int] = []
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: answers[0], cudaHostUnregister=lambda _: 0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", refuse)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(pinned, "_refused", None)
    yield answers


@pytest.mark.parametrize(
    ("failed", "outcome"), [(0, True), (2, OutOfMemory), (801, False), (304, False), (1, False), (700, RuntimeError)]
)
def test_what_cannot_be_pinned_is_told_by_its_reason(
    monkeypatch: pytest.MonkeyPatch, refusing: list[int], failed: int, outcome: Any
) -> None:
    """CUDA has one word for both memories, and keeps it for the next kernel; where nothing is pinned, all goes on."""
    forgot: list[None] = []
    refusing.append(failed)
    monkeypatch.setattr(pinned, "forget_error", lambda: forgot.append(None))
    pinning = pinned.CudaPinning(FakeStream())  # type: ignore[arg-type]
    if isinstance(outcome, bool):
        assert pinning.pin(0, PAGE) is outcome
    else:
        with pytest.raises(outcome) as caught:
            pinning.pin(0, PAGE)
        assert getattr(caught.value, "where", "host") == "host"
    assert len(forgot) == (outcome in (OutOfMemory, False))
    assert (f"CUDA error {failed}" in str(pinned.refused())) is (outcome is False)


def test_memory_that_is_not_pinned_serves_and_is_not_let_go_of(
    monkeypatch: pytest.MonkeyPatch, refusing: list[int]
) -> None:
    unpinned: list[int] = []
    refusing.append(801)
    monkeypatch.setattr(pinned, "forget_error", lambda: None)
    monkeypatch.setattr(torch.cuda.cudart(), "cudaHostUnregister", unpinned.append)
    before = pinned._now_bytes
    pool = PinnedPool(pinned.CudaPinning(FakeStream()))  # type: ignore[arg-type]
    for sizes in ([PAGE, 5], [3 * PAGE, 5]):
        used(pool, sizes)
    assert pinned._now_bytes == before
    del pool
    gc.collect()
    assert unpinned == [] and pinned._now_bytes == before


@pytest.mark.parametrize("failed", [801, 2])
def test_a_card_is_measured_where_nothing_can_be_pinned(
    monkeypatch: pytest.MonkeyPatch, refusing: list[int], failed: int
) -> None:
    """What is copied to it lies in pages as the engine's, so that its rate is that of what is offloaded."""
    refusing.append(failed)
    copied: list[tuple[torch.device, int]] = []

    def timed(function: Callable[[], torch.Tensor]) -> float:
        copied.append((function().device, function().numel()))
        return 0.5

    monkeypatch.setattr(pinned, "forget_error", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(card, "LINK_BYTES", PAGE)
    monkeypatch.setattr(card, "_gpu_time", timed)
    assert card._link(torch.device("cpu")) == 2 * PAGE
    assert copied == [(torch.device("cpu"), PAGE)] and ("801" in str(pinned.refused())) is (failed == 801)


class FakeStream:
    """Remembers that it was waited for."""

    made: ClassVar[list["FakeStream"]] = []

    def __init__(self, device: Any = None) -> None:
        self.device = device
        self.done = False
        self.made.append(self)

    def synchronize(self) -> None:
        self.done = True


@pytest.mark.parametrize("make", [offload._OnAStream, link._OnStreams])
def test_pages_are_let_go_of_once_no_stream_copies_them(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """Of every stream that there is: any of them may have a copy on its way."""
    monkeypatch.setattr(FakeStream, "made", [])
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    unpinned: list[list[bool]] = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda *_: 0,
        cudaHostUnregister=lambda _: unpinned.append([one.done for one in FakeStream.made]) or 0,
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", refuse)
    copies = make(torch.device("cpu"))
    pool = getattr(copies, "_pool", None) or PinnedPool(copies._pinning)
    used(pool, [PAGE])
    del pool, copies
    gc.collect()
    assert unpinned and all(all(done) for done in unpinned) and FakeStream.made


def refuse(code: int) -> None:
    if code:
        raise RuntimeError(f"CUDA error {code}")
