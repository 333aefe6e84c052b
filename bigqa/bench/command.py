"""`bigqa bench`. In: a grid, and how long it may take. Out: a folder of reports, and a line for each case."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from bigqa.bench.cases import Device, Grid, cases_of
from bigqa.bench.predict import Predictor
from bigqa.bench.report import Case, RunReport
from bigqa.bench.sweep import Limits, is_measured, sweep
from bigqa.console import progress
from bigqa.errors import BigqaError
from bigqa.language import put, tr
from bigqa.machine.hardware import Gpu, Hardware, detect
from bigqa.speed.calibration import calibrate, kept_rates
from bigqa.speed.throughput import Rates
from bigqa.strategy import Precision
from bigqa.units import format_bytes


def bench(
    grid: Grid, device: Literal["auto", "cuda", "cpu"], out: Path, limits: Limits, say: Callable[[str], None]
) -> list[Case]:
    """Run what has no report yet, telling each case as it ends; return what the budget left over."""
    hardware = detect(grid.nvme)
    gpu = _gpu(hardware, device)
    chosen: Device = "cpu" if gpu is None else "cuda"
    cases = cases_of(grid, chosen, _low_precision(hardware, gpu))
    done = sum(is_measured(case, out) for case in cases)
    count = tr("1 case") if len(cases) == 1 else tr("{count} cases", count=len(cases))
    where = gpu.name if gpu else "CPU"
    if done == len(cases):
        say(tr("{count} on the {where}, all measured before; reports: {out}", count=count, where=where, out=out))
        return []
    if not {"cpu", *([gpu.name] if gpu else [])} <= kept_rates(hardware).keys():
        say(tr("measuring what this machine reaches (once; kept for `bigqa probe` too)"))
        calibrate(hardware)
    # A report is kept, and says nothing of where things lie on this machine.
    predictor = Predictor(hardware.model_copy(update={"disk_path": None}), gpu, _rates(hardware, gpu))
    say(
        tr(
            "{count} on the {where}, {done} measured before; reports: {out}",
            count=count,
            where=where,
            done=done,
            out=out,
        )
    )
    with progress(tr("Measuring")) as on_progress:
        on_progress(done, len(cases))

        def on_case(report: RunReport) -> None:
            nonlocal done
            done += 1
            on_progress(done, len(cases))
            say(line_of(report))

        return sweep(cases, out, predictor, limits, on_case, nvme=grid.nvme)


def line_of(report: RunReport) -> str:
    """Say in a line what a case gave."""
    found, predicted = report.measured, report.predicted_peak_bytes
    if not found.ok:
        return tr(
            "{name}: {outcome} ({reason}); predicted {predicted}",
            name=report.case.name,
            outcome=put(found.outcome),
            reason=found.reason,
            predicted=format_bytes(predicted),
        )
    peak = report.measured_peak_bytes or 0
    memory = tr(
        "peak {peak}, predicted {predicted} ({error:+.1%})",
        peak=format_bytes(peak),
        predicted=format_bytes(predicted),
        error=predicted / max(1, peak) - 1,
    )
    measured, foretold = found.samples_per_s, report.predicted.samples_per_s
    speed = tr("; {measured:.3g} samples/s, predicted {foretold:.3g}", measured=measured, foretold=foretold)
    return put("{name}: {memory}{speed}", name=report.case.name, memory=memory, speed=speed if found.step_s else "")


def _gpu(hardware: Hardware, device: str) -> Gpu | None:
    if device == "cpu" or (device == "auto" and not hardware.gpus):
        return None
    if not hardware.gpus:
        raise BigqaError(tr("no CUDA GPU here: use --device cpu, or check the driver with nvidia-smi"))
    return hardware.gpus[0]


def _low_precision(hardware: Hardware, gpu: Gpu | None) -> Precision:
    if gpu is not None:
        return "bf16" if gpu.capability >= (8, 0) else "fp16"
    return "bf16" if hardware.cpu.bf16 else "fp32"


def _rates(hardware: Hardware, gpu: Gpu | None) -> dict[str, Rates]:
    kept = kept_rates(hardware)
    found = {"cpu": kept["cpu"]} | ({} if gpu is None else {"cuda": kept[gpu.name]})
    disk_rate = hardware.disk_bytes_per_s  # of the folder that is asked for, whatever was measured before
    if disk_rate is None:
        return found
    return {device: replace(rates, disk_bytes_per_s=disk_rate) for device, rates in found.items()}
