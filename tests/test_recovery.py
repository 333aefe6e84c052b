"""Out of memory at every place of a run: it goes on with the next rung, loses no step and repeats none, and ends.

Memory is made to run out by what is too large for it, so that only what the next rung is about helps; what a start did
is told from its parts and its forward passes, not from what it wrote down.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import LIMIT_S
from small_runs import BATCH, STEPS, metrics, train

from benchmarks.built import Start, watched
from bigqa.engine import build, inference, recovery
from bigqa.engine.loop import fit
from bigqa.engine.loop.reader import StepReader
from bigqa.engine.optim.update import Update
from bigqa.errors import BigqaError
from bigqa.files import write_json
from bigqa.plan.ladder import plain_ladder, step_down, switches_of
from bigqa.sample import FOLDER
from bigqa.settings import Rung, make_settings, read_settings
from bigqa.strategy import STRATEGIES, Strategy
from bigqa.tasks.qa.task import QuestionAnswering

FP32 = Strategy(precision="fp32", device="cpu")
FAILS_AT = 3
"""The step, counted from 0, at which memory runs out."""
FITS = 4
"""Windows that a forward pass may have from then on."""


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A run takes SIGINT and SIGTERM for itself."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert train(out) == 0
    return [line["loss"] for line in metrics(out)]


@pytest.fixture
def starts() -> Iterator[list[Start]]:
    with watched() as found:
        yield found


def is_prediction(args: tuple[Any, ...]) -> bool:
    """Whether a call is of a step that is traced: on tensors without data."""
    parameters = [
        one for arg in args if isinstance(arg, torch.optim.Optimizer) for one in arg.param_groups[0]["params"]
    ]
    tensors = [one for arg in args for one in (arg.values() if isinstance(arg, dict) else [arg])]
    return any(isinstance(one, torch.Tensor) and one.is_meta for one in (*tensors, *parameters))


def without_memory(function: Any, lacks: Callable[..., bool], *, when_done: bool = False) -> Any:
    """Return the function; it runs out of memory where a condition on its arguments says so, never in a prediction.

    `when_done`: as it ends, where what it computes is what does not fit.
    """

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs) if when_done else None
        if not is_prediction(args) and lacks(*args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found if when_done else function(*args, **kwargs)

    return wrapped


def too_large(starts: list[Start], steps: int) -> bool:
    """Whether the last forward pass does not fit: there is room for all windows until so many steps are done."""
    recorded = sum(len(start.recorded) for start in starts)
    return recorded >= steps and starts[-1].windows[-1] > FITS


def assert_losses(out: Path, unbroken: list[float], rel: float = 1e-5) -> None:
    lines = metrics(out)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines] == pytest.approx(unbroken, rel=rel)


@pytest.mark.parametrize(
    ("owner", "name", "done", "kept", "again"),
    [
        (QuestionAnswering, "loss_sum", FAILS_AT, FAILS_AT, []),
        (Update, "backward", FAILS_AT, FAILS_AT, []),
        (torch.optim.AdamW, "step", FAILS_AT, None, [FAILS_AT]),  # the weights are half changed
        (fit, "save", 2, 2, []),
    ],
    ids=["forward", "backward", "optimizer", "saving"],
)
def test_a_run_goes_on_with_the_next_rung(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: list[float],
    starts: list[Start],
    owner: Any,
    name: str,
    done: int,
    kept: int | None,
    again: list[int],
) -> None:
    """`done`: steps before memory runs out; `kept`: those that the switch tells; `again`: those that are made twice."""
    lacks = without_memory(
        getattr(owner, name), lambda *_: too_large(starts, done), when_done=owner is QuestionAnswering
    )
    monkeypatch.setattr(owner, name, lacks)
    out = tmp_path / "run"
    assert train(out) == 1
    first, second = starts
    assert set(first.windows) == {BATCH} and set(second.windows) == {FITS}
    assert first.recorded == list(range(1, done + 1))
    assert second.recorded == again + list(range(done + 1, STEPS + 1))  # none lost, and none made twice but those
    assert first.update.completed == done and second.update.completed == STEPS - done + len(again)
    assert len(second.windows) == 2 * second.update.completed
    assert_losses(out, unbroken)
    [switch] = switches_of(out)
    assert switch["after_step"] == kept and switch["micro_batch"] == FITS and switch["where"] == "device"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["switches"] == [switch] and report["settings"]["micro_batch"] == FITS
    assert report["settings"]["global_batch"] == BATCH
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert "out of memory" in log and "micro-batches of 4" in log


def test_a_step_whose_weights_are_changed_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float], starts: list[Start]
) -> None:
    """Memory runs out between a step's update and its record, which alone is lost."""
    launched = without_memory(StepReader.launched, lambda *_: too_large(starts, FAILS_AT))
    monkeypatch.setattr(StepReader, "launched", launched)
    out = tmp_path / "run"
    assert train(out) == 1
    assert [start.recorded for start in starts] == [[1, 2, 3], [5, 6]]
    assert [start.update.completed for start in starts] == [4, 2]
    expected = [loss for step, loss in enumerate(unbroken) if step != FAILS_AT]
    assert [line["loss"] for line in metrics(out)] == pytest.approx(expected, rel=1e-5)
    assert [switch["after_step"] for switch in switches_of(out)] == [FAILS_AT + 1]


def recomputes(model: Any) -> bool:
    name = "activation" if hasattr(model, "is_activation_checkpointing") else "gradient"  # renamed in transformers 5.23
    return bool(getattr(model, f"is_{name}_checkpointing"))


def rung(**axes: Any) -> tuple[Rung, ...]:
    return (Rung(name="the only one", strategy=FP32.model_copy(update=axes), micro_batch=BATCH),)


def test_the_next_start_recomputes_where_the_rung_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float], starts: list[Start]
) -> None:
    def lacks(_: Any, model: Any, *__: Any) -> bool:
        return len(starts[0].recorded) >= FAILS_AT and not recomputes(model)

    monkeypatch.setattr(
        QuestionAnswering, "loss_sum", without_memory(QuestionAnswering.loss_sum, lacks, when_done=True)
    )
    assert train(tmp_path / "run", ladder=rung(recompute="full")) == 1
    first, second = starts
    assert [start.recorded for start in starts] == [[1, 2, 3], [4, 5, 6]]
    # The layers are gone through three times instead of two, forward and backward: 4/3, but for the head's products.
    assert second.facts["flops"] == pytest.approx(4 / 3 * first.facts["flops"], rel=0.01)
    assert_losses(tmp_path / "run", unbroken)


def test_the_next_start_has_the_optimizer_of_the_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float], starts: list[Start]
) -> None:
    """32-bit moments do not fit any more: another kind of optimizer alone is of use."""
    pytest.importorskip("bitsandbytes")
    step = without_memory(torch.optim.AdamW.step, lambda *_: len(starts[0].recorded) >= FAILS_AT)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert train(tmp_path / "run", ladder=rung(optimizer="adamw8bit")) == 1
    first, second = (start.facts for start in starts)
    assert (first["optimizer"], second["optimizer"]) == ("AdamW", "PiecewiseAdamW8bit")
    assert first["moments"] == ["float32"] and "uint8" in second["moments"]
    assert [start.recorded for start in starts] == [[1, 2, 3], [3, 4, 5, 6]]
    assert_losses(tmp_path / "run", unbroken, rel=0.01)


def test_a_model_that_cannot_be_built_is_built_as_the_next_rung_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float], starts: list[Start]
) -> None:
    built: list[torch.dtype] = []

    def lacks(_: Any, __: Any, weights: Any, *___: Any) -> bool:
        built.append(next(iter(weights.masters.values())).dtype)
        return built[-1] == torch.float32

    monkeypatch.setattr(build, "make_update", without_memory(build.make_update, lacks))
    assert train(tmp_path / "run", ladder=rung(precision="bf16-sr")) == 1
    assert built == [torch.float32, torch.bfloat16]
    [only] = starts
    assert only.recorded == list(range(1, STEPS + 1))
    assert only.facts["optimizer"] == "RoundedAdamW" and only.facts["weights"] == ["bfloat16"]
    assert_losses(tmp_path / "run", unbroken, rel=0.01)
    [switch] = switches_of(tmp_path / "run")
    assert switch["after_step"] is None


def test_a_run_is_interrupted_when_the_hosts_memory_is_about_to_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float], starts: list[Start]
) -> None:
    """The run's own watch reads a host whose memory is short while a forward pass is too large for it."""
    loss_sum, begin = QuestionAnswering.loss_sum, recovery.HostWatch.__init__

    def memory() -> tuple[int, int]:
        short = bool(starts and starts[-1].windows) and too_large(starts, FAILS_AT)
        return 20 * 2**30, 100 * 2**20 if short else 10 * 2**30

    def slow(*args: Any) -> Any:
        found, deadline = loss_sum(*args), time.monotonic() + LIMIT_S
        while not is_prediction(args) and too_large(starts, FAILS_AT) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    monkeypatch.setattr(recovery.HostWatch, "__init__", lambda watch, _: begin(watch, memory))
    monkeypatch.setattr(QuestionAnswering, "loss_sum", slow)
    out = tmp_path / "run"
    assert train(out) == 1
    [switch] = switches_of(out)
    assert switch["where"] == "host" and "about to run out" in switch["reason"]
    assert switch["after_step"] == FAILS_AT
    assert [start.recorded for start in starts] == [[1, 2, 3], [4, 5, 6]]
    assert set(starts[1].windows) == {FITS}
    assert_losses(out, unbroken)


def test_evaluation_goes_on_with_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float]
) -> None:
    whole = inference._forward
    refused: list[int] = []

    def forward(model: Any, inputs: Any, chosen: list[int]) -> Any:
        if len(chosen) > FITS:
            refused.append(len(chosen))
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return whole(model, inputs, chosen)

    monkeypatch.setattr(inference, "_forward", forward)
    few = json.loads((FOLDER / "dev.json").read_text(encoding="utf-8"))
    few["data"] = few["data"][:6]
    (tmp_path / "few.json").write_text(json.dumps(few), encoding="utf-8")
    assert train(tmp_path / "run", dev_file=tmp_path / "few.json") == 0
    assert refused
    scores = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["scores"]
    assert scores["total"] == sum(len(part["qas"]) for article in few["data"] for part in article["paragraphs"])


def test_a_trained_run_that_cannot_be_scored_steps_down_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float], starts: list[Start]
) -> None:
    """No rung of training helps to score; what is trained is there, and said to be."""

    def never(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(inference, "_forward", never)
    with pytest.raises(
        BigqaError, match=r"out of memory \(host\) while scoring; the model is trained, and in .*/run/model"
    ):
        train(tmp_path / "run", dev_file=FOLDER / "dev.json")
    assert len(starts) == 1 and switches_of(tmp_path / "run") == []
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["steps"] == STEPS


def test_a_ladder_that_is_used_up_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float], starts: list[Start]
) -> None:
    never = without_memory(QuestionAnswering.loss_sum, lambda *_: True, when_done=True)
    monkeypatch.setattr(QuestionAnswering, "loss_sum", never)
    with pytest.raises(BigqaError, match="no strategy left to step down to"):
        train(tmp_path / "run")
    # 8 -> 4 -> 2 -> 1, then recomputation, then 8-bit states: each once, and each made.
    assert [start.windows for start in starts] == [[8], [4], [2], [1], [1], [1]]
    assert [recomputes(start.update.model) for start in starts] == [False] * 4 + [True] * 2
    kinds = [type(start.update.optimizer).__name__ for start in starts]
    assert kinds == ["AdamW"] * 5 + ["PiecewiseAdamW8bit"]
    assert [line["micro_batch"] for line in switches_of(tmp_path / "run")] == [4, 2, 1, 1, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(QuestionAnswering, "loss_sum", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        train(tmp_path / "run")
    assert switches_of(tmp_path / "run") == []


def test_a_run_without_a_plan_has_a_ladder_too() -> None:
    ladder = plain_ladder(Strategy(precision="fp32"), 3)
    assert [rung.micro_batch for rung in ladder] == [2, 1, 1, 1]
    assert [rung.strategy.recompute for rung in ladder] == ["none", "none", "full", "full"]


@pytest.mark.parametrize(
    ("where", "ladder", "taken", "left"),
    [
        ("device", ["zero2-offload", "recompute", "cpu"], "zero2-offload", ["recompute", "cpu"]),
        ("host", ["zero2-offload", "recompute", "cpu"], "recompute", []),
        ("host", ["stream", "cpu"], "stream", ["cpu"]),  # better than nothing
    ],
)
def test_what_keeps_more_on_the_host_is_no_way_out_where_the_host_lacks_memory(
    tmp_path: Path, where: str, ladder: list[str], taken: str, left: list[str]
) -> None:
    rungs = tuple(Rung(name=name, strategy=STRATEGIES[name], micro_batch=1) for name in ladder)
    settings = make_settings(
        model="tiny", train_file=tmp_path, out=tmp_path, strategy=STRATEGIES["plain"], ladder=rungs
    )
    write_json(tmp_path / "config.json", settings.model_dump(mode="json"))
    assert step_down(tmp_path, where, "no more can be pinned", None).name == taken
    assert [rung.name for rung in read_settings(tmp_path / "config.json").ladder] == left
    assert switches_of(tmp_path)[0]["where"] == where
