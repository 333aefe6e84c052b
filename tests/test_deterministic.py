"""`--deterministic`: what it asks of torch, for how long, what is said where a model cannot, and what it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import here
from null_gpu import on_null_gpu
from small_runs import options

from bigqa.engine.deterministic import WORKSPACE, WORKSPACE_VARIABLE, deterministic
from bigqa.errors import BigqaError
from bigqa.memory.cards import A100
from bigqa.memory.scratch import Scratch
from bigqa.run import fine_tuning
from bigqa.run.folder import settings_from


def asked() -> tuple[bool, bool, bool]:
    fills: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        fills.fill_uninitialized_memory,
    )


def test_it_holds_within_its_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE_VARIABLE, ":4096:8")
    before = asked()
    with deterministic(False):
        assert asked() == before
    with deterministic(True):
        assert asked() == (True, False, False)
    assert asked() == before


def test_the_workspace_is_what_cublas_repeats_with_and_what_a_person_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv(WORKSPACE_VARIABLE, raising=False)
    with deterministic(True):
        assert os.environ[WORKSPACE_VARIABLE] == WORKSPACE == ":16:8"
    monkeypatch.setenv(WORKSPACE_VARIABLE, ":4096:8")
    with deterministic(True):
        assert os.environ[WORKSPACE_VARIABLE] == ":4096:8"


def test_an_operation_that_cannot_repeat_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE_VARIABLE, WORKSPACE)
    with (
        pytest.raises(BigqaError, match=r"--deterministic: .*max_unpooling2d\S* which this model uses"),
        deterministic(True),
    ):
        torch.nn.functional.max_unpool2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.long), 2)
    with pytest.raises(RuntimeError, match="else"), deterministic(True):
        raise RuntimeError("something else")


def test_a_run_asks_for_it_and_may_change_its_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setenv(WORKSPACE_VARIABLE, WORKSPACE)
    monkeypatch.setattr(
        fine_tuning, "_fine_tune", lambda *_, resume: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    settings = settings_from(options(tmp_path / "run"), None)
    for wanted in (settings.deterministic, True):
        fine_tuning.fine_tune(settings.model_copy(update={"deterministic": wanted}), resume=False)
    assert seen == [False, True] and not torch.are_deterministic_algorithms_enabled()
    fine_tuning.begin(settings.model_copy(update={"deterministic": True}), {})
    assert settings_from({}, tmp_path / "run").deterministic
    assert not settings_from({"deterministic": False}, tmp_path / "run").deterministic
    assert "--deterministic" in here("train", "--help").stdout


def test_few_windows_take_a_gradient_for_each_multiprocessor() -> None:
    one = Scratch("flash queries", (1000, 16, 64, 1))
    assert one.size(A100) == 1000
    with deterministic(True):
        assert one.size(A100) == 7000  # 108 multiprocessors, one window of 16 heads
        assert one.size(A100, (8000, 128, 64, 1)) == 8000


STEP = """
import ctypes, json, tempfile, torch
from pathlib import Path
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.deterministic import deterministic
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.processes import Processes
from bigqa.memory.cards import card_for
from bigqa.models.sources import load_config, resolve
from bigqa.plan.planner import estimator_for
yes = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(lambda size: 1)
ctypes.CDLL("libcuda.so.1").null_on_read(yes)  # the norm is finite
with deterministic(True):
    low = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    axes = rows_on("cuda", low, ("plain",))["plain"]
    case = Case(model="enliple-small", strategy="plain", axes=axes, seq_len=384, micro_batch=1, global_batch=2, steps=1)
    folder = Path(tempfile.mkdtemp())
    training = worker.training_of(case, worker.settings_of(case, folder), Processes("cuda"), Silent())
    fit(training)
    card = card_for(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    estimator = estimator_for(load_config(resolve("enliple-small")))
    memory = estimator.estimate(axes, 1, 384, accumulating=True, whole=True, card=card)
print(json.dumps([training.packs, memory.allocated_bytes, torch.cuda.max_memory_allocated()]))
"""


@pytest.mark.nullgpu
@pytest.mark.parametrize("card", ["A100-40", "T4"])
def test_a_packed_step_has_deterministic_kernels_and_takes_what_is_said(card: str) -> None:
    packs, said, found = on_null_gpu(STEP, card)
    assert packs
    # Two workspaces of 8 MiB are predicted where 128 KiB are taken.
    assert 0 <= said - found <= 20 * 2**20
