"""How far predictions are from the cells of the null GPU. In: cells. Out: errors, and tables of them."""

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.null_cells import Cell, predicted, read_cells
from bigqa.units import MIB


@dataclass(frozen=True)
class Error:
    """Relative errors of one cell's prediction."""

    cell: Cell
    allocated: float
    reserved: float
    pinned: float | None
    """None where hardly any memory is pinned."""


def error_of(cell: Cell, *, whole: bool = True) -> Error:
    """Predict a cell and compare."""
    memory = predicted(cell, whole=whole)
    pinned = memory.pinned_bytes / cell.pinned - 1 if cell.pinned > 25 * MIB else None
    return Error(cell, memory.allocated_bytes / cell.allocated - 1, memory.reserved_bytes / cell.reserved - 1, pinned)


def grade(models: list[str], folder: Path, *, whole: bool, every: int) -> None:
    """Print the errors by model, strategy and card."""
    everything: list[Error] = []
    for model in models:
        cells = [cell for cell in read_cells(model, folder) if cell.outcome == "ok"][::every]
        if not cells:
            continue
        found = [error_of(cell, whole=whole) for cell in cells]
        everything += found
        by_row = defaultdict(list)
        for error in found:
            by_row[error.cell.strategy, error.cell.card].append(error)
        print(f"\n{model}: {len(found)} cells; errors in %, median (least, most)\n")
        print("| strategy | card | allocated | reserved |\n|---|---|---:|---:|")
        for (strategy, card), errors in by_row.items():
            print(f"| {strategy} | {card} | {_of(errors)} |")
        print(f"| all | | {_of(found)} |", flush=True)
    if everything:
        print(f"\nall models: {len(everything)} cells: {_of(everything)}")


def _of(errors: list[Error]) -> str:
    return f"{_spread([e.allocated for e in errors])} | {_spread([e.reserved for e in errors])}"


def _spread(values: list[float]) -> str:
    percent = [100 * value for value in values]
    return f"{statistics.median(percent):+.2f} ({min(percent):+.2f}, {max(percent):+.2f})"
