"""Runs the cases of a benchmark one after the other, each in a process of its own. In: cases, a folder. Out: reports.

An out-of-memory, a crash or a hang is a row, never the end of the sweep. A report is written whole when its case has
ended, so a sweep that is killed goes on where it was.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bigqa.bench.caps import ram_cap
from bigqa.bench.predict import Predictor
from bigqa.bench.report import Case, Measured, RunReport, read_report, write_report
from bigqa.engine.loop.stop import PARENT_VARIABLE
from bigqa.files import read_json, write_json
from bigqa.language import tr
from bigqa.versions import commit, versions

CASE_LIMIT_S = 900.0
KEPT = 6000
"""Characters of what a failed case said."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long things may take. Seconds."""

    case_s: float = CASE_LIMIT_S
    budget_s: float | None = None
    """Of the whole sweep: no case is begun when it is used up."""


def sweep(
    cases: list[Case], out: Path, predictor: Predictor, limits: Limits, on_case: Callable[[RunReport], None], *,
    nvme: Path | None = None,
) -> list[Case]:  # fmt: skip
    """Measure what has no report yet; return what the budget left over. `nvme`: a folder on a fast disk."""
    started = time.perf_counter()
    todo = [case for case in cases if not is_measured(case, out)]
    for index, case in enumerate(todo):
        left_s = limits.case_s
        if limits.budget_s is not None:
            left_s = min(left_s, limits.budget_s - (time.perf_counter() - started))
            if left_s <= 0:
                return todo[index:]
        # The prediction comes first: it must not know what it is compared with.
        predicted = predictor.of(case)
        measured = run_case(case, left_s, nvme)
        if measured.outcome == "time limit" and left_s < limits.case_s:
            return todo[index:]  # the budget's end, not the case's: it is begun anew another time
        report = RunReport(
            case=case,
            config=predictor.config(case.model),
            num_parameters=predictor.estimator(case.model).num_parameters,
            predicted=predicted,
            rates=predictor.rates(case.axes.device),
            gpu=predictor.gpu.name if predictor.gpu and case.axes.device == "cuda" else None,
            hardware=predictor.hardware,
            versions=versions(),
            commit=commit(),
            time=time.strftime("%Y-%m-%dT%H:%M:%S"),
            measured=measured,
        )
        write_report(out, report)
        on_case(report)
    return []


def is_measured(case: Case, out: Path) -> bool:
    """Return whether a case has its report: where it is to be timed, one that was timed."""
    file = out / f"{case.name}.json"
    return file.is_file() and (case.steps == 0 or read_report(file).case.steps > 0)


def run_case(case: Case, limit_s: float, nvme: Path | None = None) -> Measured:
    """Run one case to its end, whatever that is. `nvme`: where it offloads to; none: a temporary folder."""
    disk = () if nvme is None else (str(nvme.resolve()),)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bigqa-bench-") as folder, ram_cap(_ram_cap(case)) as prefix:
        asked, told = Path(folder) / "case.json", Path(folder) / "measured.json"
        write_json(asked, json.loads(case.model_dump_json()))
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "bigqa.bench.worker", str(asked), str(told), *disk],
            env=_environment(case),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, said = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            reason = f"not done after {limit_s:.0f} s"
            return Measured(outcome="time limit", reason=reason, wall_s=time.perf_counter() - started)
        finally:
            _end(process)
        if told.is_file():
            return Measured.model_validate(read_json(told, tr("the measurement")))
    wall_s = time.perf_counter() - started
    if process.returncode == -signal.SIGKILL:
        return Measured(outcome="out of memory", reason="host: killed by the kernel", wall_s=wall_s)
    reason = error_of(said) or f"exit code {process.returncode}"
    return Measured(
        outcome="failed", reason=" ".join(reason.split())[:300], said=_without_places(said)[-KEPT:], wall_s=wall_s
    )


def error_of(said: str) -> str:
    """Return the error of the last traceback; without one the last line, which may be a library's farewell."""
    _, mark, last = said.rpartition("Traceback (most recent call last):")
    lines = [line for line in (last if mark else said).splitlines() if line.strip()]
    return next((line for line in lines if mark and not line.startswith(" ")), lines[-1] if lines else "")


def _without_places(said: str) -> str:
    """Leave out where things lie on this machine: a report is kept."""
    for place in (Path(__file__).parents[2], Path(sys.prefix), Path(sys.base_prefix), os.path.expanduser("~")):
        said = said.replace(f"{place}{os.sep}", "")
    return said


def _ram_cap(case: Case) -> int | None:
    return case.cap_bytes if case.axes.device == "cpu" else None


def _environment(case: Case) -> dict[str, str]:
    heap = {"tight": "tight", "kept": "fast"}[case.heap]
    return os.environ | {"BIGQA_HEAP": heap, "HF_HUB_OFFLINE": "1", PARENT_VARIABLE: str(os.getpid())}


def _end(process: "subprocess.Popen[str]") -> None:
    """End a worker with all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
