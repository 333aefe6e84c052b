"""What a benchmark run is told, and what it tells. In: a case, its measurement, its prediction. Out: a JSON file.

A report holds prediction and measurement side by side, with all that the prediction was made from: the model's whole
configuration and the device's rates. So any machine can predict the run anew and compare.
"""

import re
import statistics
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from bigqa.errors import BigqaError
from bigqa.files import read_json, write_json
from bigqa.language import tr
from bigqa.machine.hardware import Hardware, Record
from bigqa.memory.estimate import MemoryEstimate
from bigqa.speed.throughput import Rates
from bigqa.strategy import Strategy
from bigqa.units import format_bytes

SCHEMA = 1
Outcome = Literal["ok", "out of memory", "time limit", "failed"]
Heap = Literal["tight", "kept"]


class Case(Record):
    """One run of a benchmark. Lengths in tokens, batches in windows; every window is full."""

    model: str
    strategy: str
    axes: Strategy
    seq_len: int = Field(ge=16)
    micro_batch: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    steps: int = Field(2, ge=0)
    """Timed; one before them warms up. None: memory alone is measured, as on a machine that has other work too."""
    heap: Heap = "tight"
    """On a CPU: freed memory goes back at once, or is kept; see `bigqa.machine.heap`."""
    cap_bytes: int | None = None
    """Of GPU memory as NVML shows it, or of RAM; none: all there is."""

    @property
    def grad_accum(self) -> int:
        """Micro-batches of a step."""
        return -(-self.global_batch // self.micro_batch)

    @property
    def name(self) -> str:
        """The name of the case's file: what tells it from every other case of a folder."""
        words = [short_name(self.model), self.strategy, self.axes.precision, self.axes.device]
        words.append(f"{self.micro_batch}x{self.seq_len}of{self.global_batch}")
        words += ["kept"] if self.heap == "kept" else []
        words += [f"cap{format_bytes(self.cap_bytes)}"] if self.cap_bytes else []
        return re.sub(r"[^\w.]+", "-", "-".join(words))


class Measured(Record):
    """What a run did. Bytes of one process; none where the device has no such figure."""

    outcome: Outcome
    reason: str = ""
    said: str = ""
    """Of one that failed: the last of what it said, with its traceback."""
    step_s: tuple[float, ...] = ()
    """Of each timed step."""
    windows_per_step: int = 0
    tokens_per_step: int = 0
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    """As NVML shows it, sampled."""
    peak_host_bytes: int | None = None
    """The kernel's own high-water mark of resident memory."""
    pinned_bytes: int | None = None
    energy_j: float | None = None
    """Of the timed steps, as NVML counts it."""
    last_loss: float | None = None
    wall_s: float = 0.0
    """Of the whole process."""

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.outcome == "ok"

    @property
    def samples_per_s(self) -> float:
        """Windows per second in the median step."""
        return self.windows_per_step / statistics.median(self.step_s) if self.step_s else 0.0

    @property
    def spread(self) -> tuple[float, float]:
        """Windows per second in the slowest and in the fastest step."""
        speeds = [self.windows_per_step / seconds for seconds in self.step_s]
        return (min(speeds), max(speeds)) if speeds else (0.0, 0.0)

    def peak_bytes(self, device: str) -> int | None:
        """Return what a limit is compared with: GPU memory, or on a CPU resident memory."""
        if device == "cpu":
            return self.peak_host_bytes
        return self.peak_gpu_bytes or self.peak_reserved_bytes


class Predicted(Record):
    """What the planner said before."""

    memory: MemoryEstimate
    samples_per_s: float


class RunReport(Record):
    """One finished case."""

    version: int = SCHEMA
    case: Case
    config: dict[str, Any]
    """The model's configuration, whole."""
    num_parameters: int
    measured: Measured
    predicted: Predicted
    rates: Rates
    """That the predicted speed was worked out with."""
    gpu: str | None = None
    """The card's name; a cap on it is in the case."""
    hardware: Hardware
    versions: dict[str, str]
    commit: str | None = None
    time: str

    @property
    def predicted_peak_bytes(self) -> int:
        """What is compared with `Measured.peak_bytes`."""
        memory = self.predicted.memory
        return memory.host_bytes if self.case.axes.device == "cpu" else memory.device_bytes

    @property
    def measured_peak_bytes(self) -> int | None:
        """What a limit is compared with."""
        return self.measured.peak_bytes(self.case.axes.device)

    @property
    def device_name(self) -> str:
        """The processor or card, with its cap: a capped card is no other card."""
        name = self.gpu or self.hardware.cpu.name
        cap = self.case.cap_bytes
        return tr("{size} cap on {name}", size=format_bytes(cap), name=name) if cap else name


def short_name(model: str) -> str:
    """Return a model's name without its folders."""
    path = Path(model)
    return path.parent.name if path.name == "config.json" and path.parent.name else path.name


def write_report(folder: Path, report: RunReport) -> Path:
    """Write a report into a folder, under its case's name."""
    path = folder / f"{report.case.name}.json"
    write_json(path, report.model_dump(mode="json"))
    return path


def read_report(path: Path) -> RunReport:
    """Read a report. Raises: BigqaError where it is none."""
    try:
        return RunReport.model_validate(read_json(path, tr("the report")))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise BigqaError(
            tr(
                "{path} is no report of `bigqa bench`: {where}: {problem}",
                path=path,
                where=where,
                problem=problem["msg"],
            )
        ) from None


def read_reports(folders: list[Path]) -> list[RunReport]:
    """Read every report of the folders, in the order of their names. Raises: BigqaError where a folder is not there."""
    for folder in folders:
        if not folder.is_dir():
            raise BigqaError(tr("no folder {folder}: `bigqa bench --out {folder}` makes reports", folder=folder))
    return [read_report(path) for folder in folders for path in sorted(folder.glob("*.json"))]
