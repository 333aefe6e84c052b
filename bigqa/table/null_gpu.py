"""How near predictions are to torch's own byte counts on a GPU that is not there. In: cells of `benchmarks.null_gpu`.

Out: errors of predictions made anew, and a table of them. Whole traces are made, one or two seconds for each, so the
table is of a sample; `python -m benchmarks.null_gpu --grade` goes through all of them.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.bench.cases import rows_on
from bigqa.errors import BigqaError
from bigqa.language import joined, put, shown, tr
from bigqa.machine.gpus import GpuModel, find_gpu
from bigqa.memory.cards import card_for
from bigqa.memory.estimate import Estimator, MemoryEstimate
from bigqa.memory.forks import in_forks
from bigqa.models.sources import load_config, resolve
from bigqa.plan.planner import estimator_for
from bigqa.strategy import Strategy, can_be_traced
from bigqa.table.text import markdown_table
from bigqa.units import MIB

FOLDER = Path("benchmarks") / "runs" / "null-gpu"
CONFIGS = Path("benchmarks") / "configs"
"""Of models that are no presets, by their names."""
LABEL = tr("torch's allocator on a null GPU; kernels not run")
SAMPLE = 60
"""Cells that the table is of."""
ALONE = {"allocated": (0.001, 0.005, 0.001), "reserved": (0.005, 0.02, 0.005), "pinned": (0.02, 0.02, 0.02)}
SHARDED = {"allocated": (0.01, 0.03, 0.01), "reserved": (0.02, 0.05, 0.01), "pinned": (0.02, 0.02, 0.02)}
"""Figure -> the most that its median error, its worst, and what a prediction is short by may be."""
PINNED_BYTES = 25 * MIB
"""Less is that of batches and figures alone."""
COLUMNS = (
    tr("rows"), tr("figure"), tr("cells"), tr("median"), tr("at most"), tr("worst"), tr("at most"), tr("short by"),
    tr("at most"), tr("mark"),
)  # fmt: skip
FIGURES = {"allocated": tr("allocated"), "reserved": tr("reserved"), "pinned": tr("pinned")}


@dataclass(frozen=True)
class Counted:
    """What torch counted in one cell."""

    model: str
    name: str
    """Of the cell."""
    axes: Strategy
    card: GpuModel
    gpus: int
    micro_batch: int
    seq_len: int
    accumulating: bool
    bytes_of: dict[str, int]
    """Figure -> bytes."""


@dataclass(frozen=True)
class Error:
    """Relative errors of one cell's prediction; less than zero: it is short."""

    cell: Counted
    of: dict[str, float]


def read_counted(folder: Path) -> list[Counted]:
    """Return the cells of a folder that trained, with what can be traced here."""
    files = sorted(folder.glob("*.jsonl"))
    return [cell for file in files for cell in _of_model(file) if can_be_traced(cell.axes)]


def sample_of(cells: Sequence[Counted], size: int = SAMPLE) -> list[Counted]:
    """Return so many cells, evenly spread over models and strategies."""
    ordered = sorted(cells, key=lambda cell: (cell.model, cell.name))
    return [ordered[index * len(ordered) // size] for index in range(size)] if len(ordered) > size else ordered


def errors_of(cells: Sequence[Counted]) -> list[Error]:
    """Predict cells anew, on all cores; those that share a trace together."""
    groups: dict[Any, list[Counted]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.axes, cell.gpus), []).append(cell)
    found = in_forks(_errors, list(groups.values()))
    return [error for group in found for error in group]


def null_markdown(cells: Sequence[Counted], errors: Sequence[Error]) -> str:
    """Return the table."""
    lines = []
    for title, sharded, bars in ((tr("without DeepSpeed"), False, ALONE), (put("DeepSpeed"), True, SHARDED)):
        for figure, bar in bars.items():
            values = [e.of[figure] for e in errors if e.cell.axes.needs_deepspeed == sharded and figure in e.of]
            if values:
                lines.append((title, FIGURES[figure], str(len(values)), *_marks(values, bar)))
    models = len({cell.model for cell in cells})
    count = {"drawn": len(errors), "all": len(cells), "models": models}
    what = tr("{drawn} of {all} cells of {models} models, evenly drawn.", **count)
    table = markdown_table(COLUMNS, lines, (COLUMNS[0], COLUMNS[1], COLUMNS[-1]))
    return shown(joined("\n\n", [put("### {label}", label=LABEL), what, table]))


def _marks(values: Sequence[float], bar: tuple[float, float, float]) -> Iterable[str]:
    found = (statistics.median(map(abs, values)), max(map(abs, values)), max(0.0, -min(values)))
    for value, most in zip(found, bar, strict=True):
        yield f"{value:.3%}"
        yield f"{most:.1%}"
    yield tr("pass") if all(value <= most for value, most in zip(found, bar, strict=True)) else tr("FAIL")


def _of_model(file: Path) -> Iterable[Counted]:
    config = CONFIGS / file.stem / "config.json"
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        one = json.loads(line)
        if one["outcome"] != "ok":
            continue
        card = find_gpu(one["card"])
        if card is None:
            raise BigqaError(
                tr("{file}: no card {one} in bigqa's table; measure its cells anew", file=file, one=one["card"])
            )
        shape = f"{one['micro_batch']}x{one['seq_len']} {'accumulating' if one['accumulating'] else 'once'}"
        gpus = one.get("gpus", 1)
        yield Counted(
            model=str(config) if config.is_file() else file.stem,
            name=f"{file.stem} {one['strategy']} {one['card']} {shape}" + (f" of {gpus}" if gpus > 1 else ""),
            axes=rows_on("cuda", "bf16" if card.has_bf16 else "fp16", (one["strategy"],))[one["strategy"]],
            card=card,
            gpus=gpus,
            micro_batch=one["micro_batch"],
            seq_len=one["seq_len"],
            accumulating=one["accumulating"],
            bytes_of={figure: one[figure] for figure in ALONE},
        )


def _errors(cells: list[Counted]) -> list[Error]:
    estimator = estimator_for(load_config(resolve(cells[0].model)))
    return [error_of(cell, predicted(estimator, cell)) for cell in cells]


def predicted(estimator: Estimator, cell: Counted) -> MemoryEstimate:
    """Predict a cell from a whole trace."""
    return estimator.estimate(
        cell.axes,
        cell.micro_batch,
        cell.seq_len,
        accumulating=cell.accumulating,
        world_size=cell.gpus,
        card=card_for(cell.card.name, cell.card.capability),
        whole=True,
        micro_batches=2 if cell.accumulating else 1,
    )


def error_of(cell: Counted, memory: MemoryEstimate) -> Error:
    """Compare a cell with its prediction."""
    most = {"allocated": memory.allocated_bytes, "reserved": memory.reserved_bytes, "pinned": memory.pinned_bytes}
    least = dict(zip(most, memory.least or (), strict=False))
    counted = {"allocated": 0, "reserved": 0, "pinned": PINNED_BYTES}
    of = {
        figure: beyond(least.get(figure, most[figure]), most[figure], count)
        for figure, count in cell.bytes_of.items()
        if count > counted[figure]
    }
    return Error(cell, of)


def beyond(least: int, most: int, count: int) -> float:
    """Return how far what was said is from what was counted, as a share of that; between both ends: nothing."""
    return 0.0 if least <= count <= most else (least if count < least else most) / count - 1
