"""The planner's marks, from run reports alone. In: rows. Out: a `Grade` for each device, held to the bars.

Memory and speed: errors of single runs. Fits: every run against every cap. Regret: what the choices cost, see
`bigqa.table.regret`. A figure without a bar is told and not judged.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bigqa.language import Text, tr
from bigqa.table.regret import Choice, choices_at
from bigqa.table.rows import Row, error_of
from bigqa.units import GIB

CPU_CAPS = tuple(size * GIB for size in (24, 16, 8, 4, 3))
GPU_CAPS = tuple(size * GIB for size in (80, 40, 24, 16, 11, 8, 6, 4, 2))
SHORT, REGRET = tr("memory, short by"), tr("regret, worst")
ERRORS = {
    "memory": (tr("memory, median error"), tr("memory, worst error")),
    "speed": (tr("speed, median error"), tr("speed, worst error")),
    "allocated": (tr("allocated, median error"), tr("allocated, worst error")),
    "reserved": (tr("reserved, median error"), tr("reserved, worst error")),
}
"""What errors are of -> the figures of the middle one, and of the largest."""
BARS: dict[str, dict[str, float]] = {
    "cpu": {
        tr("memory, median error"): 0.05,
        tr("memory, worst error"): 0.10,
        SHORT: 0.03,
        tr("false fits"): 0.0,
        REGRET: 0.05,
        tr("speed, median error"): 0.15,
        tr("speed, worst error"): 0.30,
    },
    "gpu": {tr("allocated, median error"): 0.005, tr("reserved, median error"): 0.02, REGRET: 0.05},
}
"""Kind of device -> figure -> the most it may be, as a share."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One mark. Shares; `count` runs or choices stand behind it."""

    name: Text
    value: float | None
    count: int
    bar: float | None

    @property
    def passes(self) -> bool:
        """Whether the bar holds; what was not measured, or has no bar, fails nothing."""
        return self.value is None or self.bar is None or self.value <= self.bar


@dataclass(frozen=True, kw_only=True)
class Cap:
    """The choices at one memory cap."""

    size_bytes: int
    choices: tuple[Choice, ...]
    regret: Figure

    def count(self, kind: str) -> int:
        """Return how many choices ended in a way."""
        return sum(choice.kind == kind for choice in self.choices)


@dataclass(frozen=True, kw_only=True)
class Grade:
    """One device."""

    processor: str
    kind: str
    """cpu or gpu."""
    num_runs: int
    figures: tuple[Figure, ...]
    caps: tuple[Cap, ...]

    @property
    def passes(self) -> bool:
        """Whether every bar holds."""
        return not self.failed

    @property
    def failed(self) -> list[Text]:
        """Return the figures that do not hold their bars."""
        return [figure.name for figure in self.figures if not figure.passes]


def grade(rows: Sequence[Row]) -> list[Grade]:
    """Grade each processor or card, capped runs with the others."""
    names = dict.fromkeys((row.on_gpu, row.processor) for row in rows)
    return [_grade([row for row in rows if (row.on_gpu, row.processor) == name]) for name in sorted(names)]


def caps_of(rows: Sequence[Row]) -> tuple[int, ...]:
    """Return the caps that a device is graded at: those of its kind that are no larger than it is."""
    first = rows[0]
    hardware = first.report.hardware
    cards = {gpu.name: gpu.total_bytes for gpu in hardware.gpus}
    size = cards.get(first.processor, hardware.host_total_bytes) if first.on_gpu else hardware.host_total_bytes
    # A card sold as 80 GB shows a little less.
    return tuple(cap for cap in (GPU_CAPS if first.on_gpu else CPU_CAPS) if cap <= 1.05 * size)


def _grade(rows: list[Row]) -> Grade:
    kind = "gpu" if rows[0].on_gpu else "cpu"
    caps = tuple(_cap(rows, cap, kind) for cap in caps_of(rows))
    caps = tuple(cap for cap in caps if cap.choices)
    regrets = [cap.regret.value for cap in caps if cap.regret.value is not None]
    figures = (
        *(_gpu_memory(rows) if kind == "gpu" else ()),
        *_errors("memory", (row.memory_error for row in rows if row.shows_need), kind),
        *_fits(rows, [cap.size_bytes for cap in caps], kind),
        *_errors("speed", (row.speed_error for row in rows), kind),
        _figure(REGRET, regrets, max, kind),
    )
    return Grade(processor=rows[0].processor, kind=kind, num_runs=len(rows), figures=figures, caps=caps)


def _cap(rows: list[Row], cap_bytes: int, kind: str) -> Cap:
    choices = tuple(choices_at(rows, cap_bytes))
    regrets = [choice.regret for choice in choices if choice.regret is not None]
    return Cap(size_bytes=cap_bytes, choices=choices, regret=_figure(REGRET, regrets, max, kind))


def _errors(name: str, errors: Iterable[float | None], kind: str) -> tuple[Figure, ...]:
    known = [error for error in errors if error is not None]
    sizes = [abs(error) for error in known]
    figures = (
        _figure(ERRORS[name][0], sizes, statistics.median, kind),
        _figure(ERRORS[name][1], sizes, max, kind),
    )
    if name != "memory":
        return figures
    return *figures, _figure(SHORT, [max(0.0, -error) for error in known], max, kind)


def _gpu_memory(rows: list[Row]) -> tuple[Figure, ...]:
    ran = [(row.predicted.memory, row.measured) for row in rows if row.measured.ok]
    allocated = [error_of(said.allocated_bytes, found.peak_allocated_bytes) for said, found in ran]
    reserved = [error_of(said.reserved_bytes, found.peak_reserved_bytes) for said, found in ran]
    return *_errors("allocated", allocated, "gpu"), *_errors("reserved", reserved, "gpu")


def _fits(rows: list[Row], caps: list[int], kind: str) -> tuple[Figure, ...]:
    """Return how often "fits" was wrong, and how often "does not": each run against its own limit and every cap."""
    said_yes: list[bool] = []
    said_no: list[bool] = []
    for row in rows:
        for limit in dict.fromkeys((*caps, row.limit_bytes)):
            fitted = row.fitted(limit)
            if fitted is not None:
                (said_yes if row.predicted_to_fit(limit) else said_no).append(fitted)
    return (
        _figure(tr("false fits"), [float(not fitted) for fitted in said_yes], statistics.mean, kind),
        _figure(tr('false "does not fit"'), [float(fitted) for fitted in said_no], statistics.mean, kind),
    )


def _figure(name: Text, values: list[float], of: Callable[[list[float]], float], kind: str) -> Figure:
    return Figure(name=name, value=of(values) if values else None, count=len(values), bar=BARS[kind].get(name))
