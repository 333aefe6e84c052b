"""Peaks of whole runs beside today's predictions: committed runs of `benchmarks.whole_runs`, replayed without a GPU."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from null_gpu import environment_of

from benchmarks.null_cells import card_of
from benchmarks.whole_runs import (
    FILE,
    ROOM,
    SPARE,
    WHAT,
    WITHOUT,
    Run,
    errors_of,
    predicted,
    read_runs,
    reserved_by,
    write_data,
)
from bigqa.nullgpu.cards import NullGpu
from bigqa.strategy import STRATEGIES

PARTS = ["place", "step", "save", "finish", "merge", "write", "score"]
BARS = {False: {"allocated": (0.001, 0.005), "reserved": (0.005, 0.02)},
        True: {"allocated": (0.01, 0.03), "reserved": (0.01, 0.05)}}  # fmt: skip
"""Whether DeepSpeed runs it -> what a prediction may be short by, and above."""
QUICK = ("8bit-recompute", "zero3-offload")
"""Predicted anew each time; all of them are where minutes are spent."""


@functools.cache
def runs() -> dict[str, Run]:
    return {run.key: run for run in read_runs()}


def keys(names: tuple[str, ...] | None = None) -> list[str]:
    return [key for key, run in runs().items() if names is None or (run.strategy in names and run.gpus == 1)]


def test_every_strategy_of_a_gpu_was_run_whole() -> None:
    rows = {name for name, row in STRATEGIES.items() if row.device == "cuda" and row.seq_len is None}
    assert {run.strategy for run in runs().values() if run.card == "A100-40"} == rows - set(WITHOUT)
    assert {run.strategy for run in runs().values() if run.gpus > 1} >= {"plain", "zero1", "zero2", "zero3"}
    on_t4 = [run for run in runs().values() if run.card == "T4"]
    assert {run.strategy for run in on_t4} == {"plain", "qlora-recompute", "zero2-offload", "zero3", "stream"}
    assert all(not run.axes.precision.startswith("bf16") for run in on_t4)
    assert f"and {len(runs())} whole\n" in (FILE.parents[2] / "README.md").read_text(encoding="utf-8")
    head = FILE.read_text(encoding="utf-8").splitlines()[0]
    assert WHAT in head and '"torch"' in head and '"commit"' in head


@pytest.mark.parametrize("key", keys())
def test_a_run_ends_with_scores_on_a_card_of_the_predicted_size_and_a_hundredth(key: str) -> None:
    """In one start: nothing ran out of memory, on the way in or out."""
    run = runs()[key]
    assert [start["code"] for start in run.starts] == [start["code"] for start in run.tight] == [0]
    for start in (*run.starts, *run.tight):
        assert list(start["parts"]) == PARTS
    assert run.tight[0]["reserved"] <= run.memory


@pytest.mark.parametrize("key", keys())
def test_no_part_takes_more_than_the_steps(key: str) -> None:
    run = runs()[key]
    start = run.starts[0] if within(run) else run.tight[0]
    assert start["parts"]["step"] == start["parts"]["write"], "peaks after the steps, and when the model is written"
    assert reserved_by(start, "step") == reserved_by(start, "score"), "scores are made within what steps reserved"


def within(run: Run) -> bool:
    """Whether scoring kept to what steps took; what was trained in 4 bits is larger when it is whole."""
    return run.axes.adapters != "qlora"


def assert_near(key: str) -> None:
    run = runs()[key]
    for figure, (short, over) in BARS[run.axes.needs_deepspeed].items():
        assert -short <= errors_of(run)[figure] <= over, (figure, errors_of(run))
    assert run.memory <= predicted(run).reserved_bytes * SPARE * (1 + BARS[run.axes.needs_deepspeed]["reserved"][1])


@pytest.mark.parametrize("key", keys(QUICK))
def test_the_peak_of_a_whole_run_is_the_predicted_one(key: str) -> None:
    assert_near(key)


@pytest.mark.slow
@pytest.mark.parametrize("key", keys())
def test_the_peak_of_every_whole_run_is_the_predicted_one(key: str) -> None:
    assert_near(key)


@pytest.mark.nullgpu
def test_a_run_is_made_anew_from_its_first_part_to_its_last(tmp_path: Path) -> None:
    """The committed runs are of a day: what measures them has to go on measuring today's trainer."""
    run = Run("plain")
    gpu = NullGpu(card_of(run.card), count=run.gpus, memory_bytes=ROOM, context_bytes=0)
    write_data(tmp_path)
    job = {"card": gpu.description(), "ranks": run.gpus, "options": run.options(tmp_path / "run", tmp_path)}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.whole_worker", "8.0"]
    done = subprocess.run(
        command, env=environment_of(gpu), input=json.dumps(job), capture_output=True, text=True, check=False
    )
    (start,) = json.loads(done.stdout)
    assert start["code"] == 0, start["traceback"]
    assert list(start["parts"]) == PARTS
    errors = errors_of(Run(run.strategy, starts=[start], tight=[start]))
    for figure, (short, over) in BARS[False].items():
        assert -short <= errors[figure] <= over, errors
