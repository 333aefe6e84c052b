"""Runs under caps, from the reports of runs without: the plan chosen at each cap, and each plan at its own need.

In: `runs/gpu/` with the reports of a grid. Out: more reports there. Run: `python -m benchmarks.gpu_caps --caps 8GiB`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu_session import OUT_OF_TIME, REPORTS
from bigqa.bench.command import line_of
from bigqa.bench.predict import Predictor
from bigqa.bench.report import Case, RunReport, read_reports
from bigqa.bench.sweep import Limits, sweep
from bigqa.machine.hardware import detect
from bigqa.plan.machine import HEADROOM
from bigqa.ranges import sizes
from bigqa.speed.calibration import calibrate, kept_rates

MARGIN = 1.02
"""Of its predicted need, that a capped run must finish in."""


def at_prediction(reports: list[RunReport]) -> list[Case]:
    """Return each finished run, capped at its prediction and 2%."""
    return [
        report.case.model_copy(update={"cap_bytes": int(MARGIN * report.predicted_peak_bytes)})
        for report in reports
        if report.measured.ok and report.case.cap_bytes is None
    ]


def chosen_at(reports: list[RunReport], caps: tuple[int, ...]) -> Iterator[Case]:
    """Yield for each model and cap the plan that is the fastest, as predicted, of the lowest tier that fits."""
    whole = [report for report in reports if report.case.cap_bytes is None]
    for model in dict.fromkeys(report.case.model for report in whole):
        for cap in caps:
            fits = [r for r in whole if r.case.model == model and r.predicted_peak_bytes <= cap * (1 - HEADROOM)]
            if fits:
                best = min(fits, key=lambda report: (report.case.axes.tier, -report.predicted.samples_per_s))
                yield best.case.model_copy(update={"cap_bytes": cap})


def main() -> None:
    """Run what has no report yet."""
    parser = argparse.ArgumentParser(description="Runs under caps of memory.")
    parser.add_argument("--caps", default="")
    parser.add_argument("--at-prediction", action="store_true")
    parser.add_argument("--budget-s", type=float)
    parser.add_argument("--reports", type=Path, default=REPORTS, help="a folder of reports: more are put beside them")
    options = parser.parse_args()
    reports = read_reports([options.reports])
    cases = at_prediction(reports) if options.at_prediction else list(chosen_at(reports, sizes("--caps")(options.caps)))
    hardware = detect()
    rates = kept_rates(hardware) or calibrate(hardware)
    gpu = hardware.gpus[0]
    assert torch.cuda.is_available()
    predictor = Predictor(hardware, gpu, {"cpu": rates["cpu"], "cuda": rates[gpu.name]})
    left = sweep(
        cases, options.reports, predictor, Limits(budget_s=options.budget_s), lambda r: print(line_of(r), flush=True)
    )
    sys.exit(OUT_OF_TIME if left else 0)


if __name__ == "__main__":
    main()
