"""What a strategy becomes on a device: its precision, its kind, and which axes exclude each other."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from null_gpu import on_null_gpu

from bigqa.engine import build
from bigqa.errors import BigqaError
from bigqa.plan.ladder import AGAIN, plain_ladder
from bigqa.settings import Settings
from bigqa.strategy import STRATEGIES, Strategy

CPU = torch.device("cpu")


def settings(**changes: Any) -> Settings:
    return Settings(model="tiny", train_file=Path("train.json"), out=Path("run"), **changes)


def test_a_cpu_multiplies_bf16_where_torch_says_so() -> None:
    expected = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert build.cpu_multiplies_bf16() is bool(expected)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_the_best_precision_of_a_cpu_is_bf16_where_it_multiplies_it(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "cpu_multiplies_bf16", lambda: has_bf16)
    assert build.choose_precision("auto", CPU) == ("bf16" if has_bf16 else "fp32")
    assert build.choose_precision("fp32", CPU) == "fp32"
    assert build.choose_precision("fp16", CPU) == "fp16"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_strategy_is_of_the_device_that_runs_it(device: Any) -> None:
    for asked in (None, Strategy(precision="bf16", device="cpu"), Strategy(precision="bf16", device="cuda")):
        found = build.strategy_of(settings(precision="bf16", strategy=asked), torch.device(device))
        assert found.device == device and found.precision == "bf16"


def test_axes_that_exclude_each_other_are_named() -> None:
    released = Strategy(precision="bf16", device="cpu", release=True)
    assert build.not_together(released) is None
    assert "one process" in str(build.not_together(released, 2))
    assert "fp16" in str(build.not_together(released.model_copy(update={"precision": "fp16"})))
    sharded = Strategy(precision="bf16", device="cpu", zero_stage=3)
    assert build.not_together(sharded, 2) is None
    for axes in (
        {"release": True}, {"precision": "bf16-sr"}, {"recompute": "selective"}, {"optimizer": "adamw8bit"},
        {"adapters": "lora"},
    ):  # fmt: skip
        assert build.not_together(sharded.model_copy(update=axes)) is not None
    assert build.not_together(sharded.model_copy(update={"zero_stage": 2, "recompute": "selective"})) is None
    assert all(build.not_together(one) is None for one in STRATEGIES.values())


@pytest.mark.parametrize(("world_size", "asked", "share"), [(1, None, 10), (3, None, 4), (3, 2, 2), (2, 64, 5)])
def test_a_micro_batch_is_at_most_a_processs_share(world_size: int, asked: int | None, share: int) -> None:
    assert build.share_of_batch(settings(global_batch=10, micro_batch=asked), world_size) == share


def test_a_ladder_without_a_plan_goes_down_by_halves() -> None:
    strategy = Strategy(precision="fp32", device="cpu")
    rungs = plain_ladder(strategy, 6)
    assert [rung.micro_batch for rung in rungs[:4]] == [3, 2, 1, 1]
    assert [rung.strategy.recompute for rung in rungs[:4]] == ["none", "none", "none", "full"]
    assert all(rung.strategy.optimizer == "adamw" for rung in rungs[:4])
    sharded = strategy.model_copy(update={"zero_stage": 2, "recompute": "full"})
    assert plain_ladder(sharded, 1) == ()
    # What a scheduler takes for a run that is to be started again.
    assert os.EX_TEMPFAIL == AGAIN


@pytest.mark.parametrize(
    ("capability", "precision", "device", "refused"),
    [
        ((7, 5), "bf16", "cuda", True),
        ((7, 5), "bf16-sr", "cuda", True),
        ((7, 5), "fp16", "cuda", False),
        ((7, 5), "bf16", "cpu", False),
        ((8, 0), "bf16", "cuda", False),
    ],
)
def test_bf16_is_refused_on_a_card_without_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: Any, device: str, refused: bool
) -> None:
    """Where a run asks what it can have: `bench` and `--strategy` come by there as a plan does."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    asked = "bf16" if precision == "bf16-sr" else precision
    wanted = settings(strategy=Strategy(precision=precision), precision=asked)
    processes: Any = SimpleNamespace(device=torch.device(device, 0), world_size=1)
    says = "Tesla T4 has no bf16"
    problem: AbstractContextManager[Any] = pytest.raises(BigqaError, match=says) if refused else nullcontext()
    with problem:
        assert build.possible_strategy(wanted, processes).precision == precision


REFUSED = """
import json, tempfile
from pathlib import Path
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.errors import BigqaError
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import settings_from
from bigqa.sample import FOLDER
found = []
for name in ("plain", "stochastic"):
    axes = rows_on("cuda", "bf16", (name,))[name]
    case = Case(model="enliple-small", strategy=name, axes=axes, seq_len=64, micro_batch=1, global_batch=1, steps=1)
    given = {"model": "tiny", "train_file": FOLDER / "train.json", "device": "cuda", "precision": "bf16", "seq_len": 64,
             "doc_stride": 16, "max_query_length": 24, "strategy": name, "out": Path(tempfile.mkdtemp()) / "run"}
    def measure():
        worker.measure(case, Path(tempfile.mkdtemp()))
    def train():
        fine_tune(settings_from(given, None), resume=False)
    for run in (measure, train):
        try:
            run()
            found.append("trained")
        except BigqaError as error:
            found.append(str(error))
print(json.dumps(found))
"""


@pytest.mark.nullgpu
def test_neither_bench_nor_a_named_strategy_has_bf16_on_a_card_without_it() -> None:
    found = on_null_gpu(REFUSED, card="T4")
    assert len(found) == 4 and all("Tesla T4 has no bf16" in one for one in found), found
