"""One line of the benchmark's table. In: run reports. Out: `Row`s, each with what the code as it is now predicts.

A table grades the planner that is here, not the one that made the reports: every prediction is made anew, from the
configuration and the rates in the report. What was predicted then is kept beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bigqa.bench.predict import estimator_of, predict_anew
from bigqa.bench.report import Measured, Predicted, RunReport, short_name
from bigqa.plan.machine import HEADROOM, HOST_HEADROOM


@dataclass(frozen=True, kw_only=True)
class Row:
    """A report beside its prediction made anew, and the errors of that."""

    report: RunReport
    predicted: Predicted
    step_flops: int = 0
    """Matrix products of one optimizer step, recomputation included."""

    @property
    def model(self) -> str:
        """The model's name, without its folders."""
        return short_name(self.report.case.model)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return self.report.case.axes.device == "cuda"

    @property
    def processor(self) -> str:
        """The processor or card, whatever its cap."""
        return self.report.gpu or self.report.hardware.cpu.name

    @property
    def tier(self) -> int:
        """What the strategy changes."""
        return self.report.case.axes.tier

    @property
    def measured(self) -> Measured:
        """What the run did."""
        return self.report.measured

    @property
    def predicted_bytes(self) -> int:
        """Predicted peak of what a limit is compared with."""
        return self.predicted.memory.device_bytes if self.on_gpu else self.predicted.memory.host_bytes

    @property
    def measured_bytes(self) -> int | None:
        """Measured peak of the same; none where the run did not reach its end."""
        return self.report.measured_peak_bytes if self.measured.ok else None

    @property
    def memory_error(self) -> float | None:
        """Of the predicted peak, as a share of the measured one; negative: too little was predicted."""
        return error_of(self.predicted_bytes, self.measured_bytes)

    @property
    def speed_error(self) -> float | None:
        """Of the predicted samples per second; negative: too slow a run was predicted."""
        return error_of(self.predicted.samples_per_s, self.measured.samples_per_s if self.is_timed else None)

    @property
    def shows_need(self) -> bool:
        """Whether its peak is what the run needs: a heap that keeps what was freed holds more."""
        return self.on_gpu or self.report.case.heap == "tight"

    @property
    def is_timed(self) -> bool:
        """Whether its speed was measured; else memory alone was, or it did not reach its end."""
        return self.measured.ok and bool(self.measured.step_s)

    @property
    def rate_share(self) -> float | None:
        """Of the device's matrix rate in the report, what the median step reached."""
        if not self.is_timed or not self.step_flops:
            return None
        rates, step_s = self.report.rates, self.measured.windows_per_step / self.measured.samples_per_s
        in_fp32 = self.report.case.axes.precision == "fp32"
        return self.step_flops / step_s / (rates.fp32_flops_per_s if in_fp32 else rates.low_flops_per_s)

    @property
    def limit_bytes(self) -> int:
        """The memory that the run had: its cap, or what was free on the device."""
        hardware, case = self.report.hardware, self.report.case
        free = next((gpu.free_bytes for gpu in hardware.gpus if gpu.name == self.report.gpu), hardware.host_free_bytes)
        return case.cap_bytes or free

    def predicted_to_fit(self, limit_bytes: int) -> bool:
        """Whether the planner would let it run within a limit."""
        return self.predicted_bytes <= limit_bytes * (1 - (HEADROOM if self.on_gpu else HOST_HEADROOM))

    def fitted(self, limit_bytes: int) -> bool | None:
        """Whether it ran within a limit, as far as the run can tell."""
        if self.measured.outcome == "out of memory":
            return False if limit_bytes <= self.limit_bytes else None
        if self.measured_bytes is None or not self.shows_need:
            return None
        return self.measured_bytes <= limit_bytes


def error_of(predicted: float | None, measured: float | None) -> float | None:
    """Return a prediction's error as a share of what was measured; none where one is missing."""
    return predicted / measured - 1 if predicted is not None and measured else None


def rows_of(reports: list[RunReport], on_row: Callable[[int, int], None] = lambda done, total: None) -> list[Row]:
    """Predict every report anew. Traces are shared; a report of a large model on a GPU takes some seconds."""
    rows: list[Row] = []
    for report in reports:
        on_row(len(rows), len(reports))
        rows.append(row_of(report))
    return rows


def row_of(report: RunReport) -> Row:
    """Predict one report anew."""
    case = report.case
    work = estimator_of(report).footprint(case.axes, case.micro_batch, case.seq_len, accumulating=case.grad_accum > 1)
    return Row(report=report, predicted=predict_anew(report), step_flops=case.grad_accum * work.flops)
