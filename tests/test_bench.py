"""`bigqa bench`: what is measured, and that nothing that happens to a case ends a sweep, loses it or doubles it."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import LIMIT_S, here, run, until
from hand_made import report

from bigqa.bench.cases import Grid, cases_of, rows_on
from bigqa.bench.command import bench
from bigqa.bench.predict import Predictor, predict_anew
from bigqa.bench.report import Case, Measured, RunReport, read_report, read_reports, write_report
from bigqa.bench.sweep import Limits, error_of, is_measured, run_case, sweep
from bigqa.errors import UsageError
from bigqa.machine import hardware
from bigqa.machine.hardware import CGROUP, Hardware, detect
from bigqa.ranges import numbers, sizes
from bigqa.speed import calibration, timing
from bigqa.strategy import STRATEGIES, Strategy

WORDS = ["tiny", "--seq-len", "64", "--global-batch", "8", "--micro-batch", "4", "--steps", "1", "--device", "cpu"]
STRATEGY_NAMES = ["cpu", "cpu-fp32"]


@dataclass(frozen=True)
class Calibrated:
    """What measuring this machine gave, and where it is kept; `measured_s`: how long each rate was to be measured."""

    cache: Path
    hardware: Hardware
    before: dict[str, Any]
    rates: dict[str, Any]
    measured_s: list[float]


def hurry(patch: pytest.MonkeyPatch) -> list[float]:
    """Measure every rate on a little, and for a moment; return how long each would be measured for a person."""
    asked: list[float] = []
    whole_s, measured = calibration.LONG_S, calibration.undisturbed

    def noted(pieces: Any, seconds: float) -> Any:
        asked.extend([seconds] * len(pieces))
        return measured(pieces, seconds / whole_s * 0.01)

    patch.setattr(calibration, "undisturbed", noted)
    patch.setattr(timing, "LONGER", 1)
    patch.setattr(calibration, "STALE_S", 0.01)  # it sleeps as long
    for name in ("MANY", "STALE_BYTES"):
        patch.setattr(calibration, name, getattr(calibration, name) // 16)
    return asked


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    cache, hardware = tmp_path_factory.mktemp("cache"), detect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGQA_CACHE", str(cache))
        asked = hurry(patch)
        before = calibration.kept_rates(hardware)
        return Calibrated(cache, hardware, before, calibration.calibrate(hardware), asked)


def case(**changes: Any) -> Case:
    fields = {"model": "tiny", "strategy": "cpu", "axes": Strategy(device="cpu"), "seq_len": 64, "micro_batch": 2}
    return Case.model_validate(fields | {"global_batch": 4, "steps": 1} | changes)


@pytest.fixture(scope="module")
def killed_and_taken_up(tmp_path_factory: pytest.TempPathFactory, calibrated: Calibrated) -> dict[str, Any]:
    """A sweep whose process is killed while a case runs, and the same command again."""
    out = tmp_path_factory.mktemp("sweep") / "reports"
    words = ["bench", *WORDS, "--out", str(out), "--strategies", ",".join(STRATEGY_NAMES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGQA_CACHE", str(calibrated.cache))
        first = subprocess.Popen([sys.executable, "-m", "bigqa.cli", *words], stdout=subprocess.DEVNULL, text=True)
        workers: list[psutil.Process] = []

        def runs_the_second_case() -> bool:
            workers[:] = psutil.Process(first.pid).children(recursive=True)
            return bool(list(out.glob("*.json")) and workers)

        until(runs_the_second_case, first)
        first.kill()
        first.communicate()
        before = {path.name: path.read_bytes() for path in out.glob("*.json")}
        second = here(*words)
    assert second.returncode == 0, second
    return {"out": out, "before": before, "said": second.stdout, "workers": workers}


def test_a_killed_sweep_goes_on_with_no_case_lost_or_doubled(killed_and_taken_up: dict[str, Any]) -> None:
    out, before = killed_and_taken_up["out"], killed_and_taken_up["before"]
    assert 1 <= len(before) < len(STRATEGY_NAMES)
    assert all((out / name).read_bytes() == text for name, text in before.items())
    assert [report.case.strategy for report in read_reports([out])] == sorted(STRATEGY_NAMES)
    assert not list(out.glob(".*"))  # nothing half-written
    assert f"{len(before)} measured before" in killed_and_taken_up["said"]


def test_the_worker_of_a_killed_sweep_does_not_live_on(killed_and_taken_up: dict[str, Any]) -> None:
    _, alive = psutil.wait_procs(killed_and_taken_up["workers"], timeout=LIMIT_S)
    assert not alive


def test_a_report_holds_what_it_was_measured_with(killed_and_taken_up: dict[str, Any]) -> None:
    for made in read_reports([killed_and_taken_up["out"]]):
        found = made.measured
        assert found.ok and len(found.step_s) == 1 and found.windows_per_step == 8
        assert found.tokens_per_step == 8 * 64 and found.last_loss is not None
        assert 200 * 2**20 < (found.peak_host_bytes or 0) < 2 * 2**30
        assert made.hardware.cpu.cores >= 1 and "torch" in made.versions
        assert made.config["num_hidden_layers"] == 4 or made.config["hidden_size"]
        assert made.rates.source.startswith("measured on this CPU")
        # The same code predicts the same from the report alone.
        assert predict_anew(made) == made.predicted


def test_a_hang_is_cut_at_its_limit_and_is_a_row() -> None:
    """Its worker would take longer to import torch."""
    found = run_case(case(), limit_s=1.0)
    assert found.outcome == "time limit" and "1 s" in found.reason
    assert 1.0 <= found.wall_s < LIMIT_S


def test_a_case_that_the_budget_ends_has_no_report_and_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrated: Calibrated
) -> None:
    """Against a case that is cut at its own limit, which is a row."""
    monkeypatch.setenv("BIGQA_CACHE", str(calibrated.cache))
    predictor = Predictor(detect(), None, {"cpu": report().rates})
    cases = [case(), case(micro_batch=1)]
    said: list[RunReport] = []
    left = sweep(cases, tmp_path, predictor, Limits(case_s=LIMIT_S, budget_s=1.0), said.append)
    assert left == cases and not list(tmp_path.iterdir()) and not said
    left = sweep(cases[:1], tmp_path, predictor, Limits(case_s=0.5, budget_s=LIMIT_S), said.append)
    assert not left and [one.measured.outcome for one in said] == ["time limit"]


def test_two_models_with_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="called bert"):
        cases_of(Grid(models=("one/bert", "other/bert"), seq_lens=(64,)), "cpu", "bf16")


def test_a_peak_is_the_process_own_and_not_its_parents() -> None:
    there = bytearray(2**30)  # written: resident in this process
    command = "from bigqa.engine.loop.meter import peak_resident_bytes; print(peak_resident_bytes())"
    done = run([sys.executable, "-c", command])
    assert len(there) == 2**30 and 2**27 < int(done.stdout) < 7 * 2**27


def test_a_crash_is_a_row_with_its_reason() -> None:
    found = run_case(case(model="no/such/model"), LIMIT_S)
    assert found.outcome == "failed" and "no/such/model" in found.reason
    assert "Traceback (most recent call last)" in found.said and 'worker.py", line' in found.said


TRACE = "Traceback (most recent call last):"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (f"{TRACE}\n  File 'x'\n    1 / 0\nZeroDivisionError: by zero\nWARNING: bye", "ZeroDivisionError"),
        (f"{TRACE}\n  x\nKeyError: 1\nagain:\n{TRACE}\n  y\nOSError: 2\n", "OSError"),
        ("a warning\nKilled by something", "Killed"),
        ("", ""),
    ],
)
def test_the_error_is_told_from_what_is_said_after_it(said: str, error: str) -> None:
    assert error_of(said).startswith(error)


LARGE = case(seq_len=256, micro_batch=32, global_batch=32, steps=0)


@pytest.fixture(scope="module")
def roomy() -> Measured:
    return run_case(LARGE, LIMIT_S)


@pytest.mark.skipif(not os.access(CGROUP / "memory", os.W_OK), reason="no memory cgroup that this user may make")
def test_a_cap_is_kept_and_running_out_of_memory_is_a_row(roomy: Measured) -> None:
    assert roomy.ok and (roomy.peak_host_bytes or 0) > 700 * 2**20
    found = run_case(LARGE.model_copy(update={"cap_bytes": 500 * 2**20}), LIMIT_S)
    assert found.outcome == "out of memory" and found.reason.startswith("host")
    assert not list((CGROUP / "memory").glob(f"bigqa-bench-{os.getpid()}"))


def test_without_timed_steps_memory_alone_is_measured(roomy: Measured) -> None:
    assert roomy.ok and not roomy.step_s and roomy.samples_per_s == 0 and roomy.peak_host_bytes


def test_a_report_of_memory_alone_is_not_one_of_speed(tmp_path: Path) -> None:
    write_report(tmp_path, report(steps=0))
    asked = report(steps=0).case
    assert is_measured(asked, tmp_path) and not is_measured(asked.model_copy(update={"steps": 1}), tmp_path)
    write_report(tmp_path, report(steps=1))
    assert is_measured(asked, tmp_path) and is_measured(asked.model_copy(update={"steps": 2}), tmp_path)


def test_cases_are_each_strategy_that_the_device_can_run_once() -> None:
    cases = cases_of(Grid(models=("enliple-small",), micro_batches=(16, 4), seq_lens=(512,)), "cpu", "bf16")
    assert len({one.name for one in cases}) == len(cases)
    assert len({(one.axes, one.micro_batch, one.seq_len) for one in cases}) == len(cases)
    assert all(one.axes.device == "cpu" and not one.axes.needs_deepspeed for one in cases)
    assert {"cpu", "cpu-least", "selective", "lora", "cpu-seq-384"} <= {one.strategy for one in cases}
    assert {one.micro_batch for one in cases if one.strategy == "cpu-least"} == {1}
    assert {one.seq_len for one in cases if one.strategy == "cpu-seq-384"} == {384}
    short = cases_of(Grid(models=("enliple-small",), seq_lens=(384,)), "cpu", "bf16")
    assert not [one for one in short if one.axes.seq_len]


def test_on_a_gpu_every_row_of_a_gpu_is_a_case() -> None:
    names = set(rows_on("cuda", "fp16"))
    assert names == {name for name, row in STRATEGIES.items() if row.device == "cuda" and not row.needs_disk}
    assert all(axes.precision != "bf16" for axes in rows_on("cuda", "fp16").values())


def test_rows_of_a_disk_are_cases_where_one_is_named() -> None:
    """On a CPU those alone that are streamed: ZeRO's states would be in the same memory before they are written."""
    disk = Path("disk")
    on_cpu, on_gpu = (
        {one.strategy for one in cases_of(Grid(models=("tiny",), nvme=disk), device, "bf16") if one.axes.needs_disk}
        for device in ("cpu", "cuda")
    )
    assert on_cpu == {"stream-disk", "stream-disk-8bit"} and on_gpu == on_cpu | {"zero3-nvme"}
    with pytest.raises(UsageError, match="--nvme"):
        cases_of(Grid(models=("tiny",), strategies=("stream-disk",)), "cpu", "bf16")


def test_a_disk_is_where_it_is_asked_for_and_its_rate_is_the_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrated: Calibrated
) -> None:
    monkeypatch.setenv("BIGQA_CACHE", str(calibrated.cache))
    disk, asked = tmp_path / "fast", []
    monkeypatch.setattr(hardware, "disk_rates", lambda folder: asked.append(folder) or (3e6, 9e6))
    grid = Grid(models=("tiny",), strategies=("stream-disk",), seq_lens=(64,), steps=1, nvme=disk)
    assert bench(grid, "cpu", tmp_path / "reports", Limits(case_s=LIMIT_S), print) == []
    (found,) = read_reports([tmp_path / "reports"])
    assert found.measured.ok, found.measured.said
    assert asked == [disk] and list(disk.iterdir()) == []  # made by the worker, and left empty
    assert found.rates.disk_bytes_per_s == 3e6
    quick = dataclasses.replace(found.rates, disk_bytes_per_s=3e9)
    assert predict_anew(found.model_copy(update={"rates": quick})).samples_per_s > 2 * found.predicted.samples_per_s
    assert str(tmp_path) not in found.model_dump_json()


def test_caps_and_counts_as_people_write_them() -> None:
    assert sizes("--caps")("8GiB,4GiB") == (8 * 2**30, 4 * 2**30) and numbers("micro_batch")("1, 4,16") == (1, 4, 16)
    grid = Grid(models=("tiny",), strategies=("cpu",), caps=(2**30, 2**31))
    assert [one.cap_bytes for one in cases_of(grid, "cpu", "bf16")] == [2**30, 2**31]
    with pytest.raises(UsageError, match="--caps"):
        sizes("--caps")("eight")
    with pytest.raises(UsageError, match="--micro-batch"):
        numbers("micro_batch")("1,x")
    with pytest.raises(UsageError, match="cpu-recompute"):
        cases_of(Grid(models=("tiny",), strategies=("fastest",)), "cpu", "bf16")


def test_a_calibration_is_kept_for_this_machine(calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQA_CACHE", str(calibrated.cache))
    hardware, found = calibrated.hardware, calibrated.rates
    assert calibrated.before == {}
    # 30 s, as `--help` says, of which most is this; a clock would tell of what else the machine does.
    assert len(calibrated.measured_s) > 8 and sum(calibrated.measured_s) + 4 * calibration.STALE_S < 15
    assert calibration.kept_rates(hardware) == found and found["cpu"].adam_per_s
    other = hardware.model_copy(update={"cpu": hardware.cpu.model_copy(update={"name": "another"})})
    assert calibration.kept_rates(other) == {}


def test_a_machine_that_was_not_measured_is_measured_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path / "cache"))
    hurry(monkeypatch)
    said: list[str] = []
    left = bench(Grid(models=("tiny",), strategies=("cpu",)), "cpu", tmp_path, Limits(budget_s=0.0), said.append)
    assert [one.strategy for one in left] == ["cpu"] and said[0].startswith("measuring what this machine reaches")
    assert "cpu" in calibration.kept_rates(detect())


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"case": {}}), encoding="utf-8")
    with pytest.raises(Exception, match=r"x\.json is no report"):
        read_report(tmp_path / "x.json")
