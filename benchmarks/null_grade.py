"""How far predictions are from all cells of the null GPU. In: a folder of cells. Out: tables of errors."""

import statistics
from collections import defaultdict
from pathlib import Path

from bigqa.table.null_gpu import Error, errors_of, null_markdown, read_counted


def grade(models: list[str], folder: Path) -> None:
    """Print the errors by model and strategy, the largest, and the table that `bigqa table --grade` has of a sample."""
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
    for figure in ("allocated", "reserved"):
        print(f"\nLargest errors, {figure}:")
        for error in sorted(errors, key=lambda one: -abs(one.of[figure]))[:10]:
            print(f"  {error.cell.name}: {error.of[figure]:+.3%}")
    print("\n" + null_markdown(cells, errors))


def _spread(errors: list[Error], figure: str) -> str:
    percent = [100 * error.of[figure] for error in errors]
    return f"{statistics.median(percent):+.2f} ({min(percent):+.2f}, {max(percent):+.2f})"
