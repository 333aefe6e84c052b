"""How far predictions are from all cells of the null GPU. In: a folder of cells. Out: tables of errors."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bigqa.table.null_gpu import ALONE, SHARDED, Error, errors_of, null_markdown, read_counted


def grade(models: list[str], folder: Path) -> None:
    """Print the errors by model and strategy, those beyond a bar, and the table that `bigqa table --grade` has."""
    cells = read_counted(folder)
    errors: list[Error] = []
    for model in models:
        found = errors_of([cell for cell in cells if cell.name.split()[0] == model])
        errors += found
        by_row = defaultdict(list)
        for error in found:
            by_row[error.cell.name.split()[1]].append(error)
        if found:
            print(f"\n{model}: {len(found)} cells; errors in %, median (least, most)\n")
            print("| strategy | cells | allocated | reserved |\n|---|---:|---:|---:|")
            for strategy, row in by_row.items():
                print(f"| {strategy} | {len(row)} | {_spread(row, 'allocated')} | {_spread(row, 'reserved')} |")
            print(f"| all | {len(found)} | {_spread(found, 'allocated')} | {_spread(found, 'reserved')} |", flush=True)
    print(f"\nBeyond a bar: {len(beyond := beyond_bars(errors))} of {len(errors)} cells")
    print("\n".join(f"  {line}" for line in beyond))
    print("\n" + null_markdown(cells, errors))


def _spread(errors: list[Error], figure: str) -> str:
    percent = [100 * error.of[figure] for error in errors]
    return f"{statistics.median(percent):+.2f} ({min(percent):+.2f}, {max(percent):+.2f})"


def beyond_bars(errors: Sequence[Error]) -> list[str]:
    """Return a line for each cell of which a figure is further off than it may be, or shorter."""
    lines = []
    for error in errors:
        bars = SHARDED if error.cell.axes.needs_deepspeed else ALONE
        of = {name: value for name, value in error.of.items() if not -bars[name][2] <= value <= bars[name][1]}
        if of:
            figures = ", ".join(f"{figure} {value:+.2%}" for figure, value in of.items())
            lines.append(f"{error.cell.name}: {figures}")
    return lines
