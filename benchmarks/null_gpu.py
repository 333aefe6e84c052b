"""Ground truth of memory: torch's own allocator on GPUs that are not there. Run: `python -m benchmarks.null_gpu`.

In: models, cards, strategies. Out: one file for each model in `runs/null-gpu/`; cells that are there are not run again.
One process for each card imports everything and forks for each cell. `--grade` runs nothing: it prints how far the
predictions of this code are from the cells.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.null_cells import CARDS, FOLDER, MODELS, WHAT, Cell, card_of, predicted, read_cells, wanted
from bigqa.memory.estimate import Estimator
from bigqa.models.sources import load_config, resolve
from bigqa.nullgpu.build import libraries_for
from bigqa.nullgpu.cards import NullGpu
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import ask
from bigqa.nullgpu.torch_build import cuda_build
from bigqa.plan.planner import estimator_for
from bigqa.units import MIB
from bigqa.versions import commit, versions

ROOM = 400 * 1024 * MIB
"""Memory of each card: a cell says what is needed, whether the card has it or not."""


def measure(cells: list[Cell], card: str, folder: Path) -> None:
    """Run a card's cells and append them to their models' files."""
    python = ask(Path(sys.executable))
    torch = cuda_build(python, install=False)
    libraries = libraries_for(python, torch, install=False)
    gpu = NullGpu(card_of(card), memory_bytes=ROOM, context_bytes=0)
    paths = () if python.torch == torch else (torch.folder,)
    environment = variables(gpu, libraries, paths, os.environ) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.null_worker"]
    by_key = {cell.key: cell for cell in cells}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        for cell in cells:
            print(json.dumps({"key": cell.key, "case": json.loads(cell.case().model_dump_json())}), file=worker.stdin)
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline() or "{}")
            if not answer:
                raise RuntimeError(f"{cell.key}: the worker is gone")
            cell = by_key[answer.pop("key")]
            _append(Cell(**vars(cell) | answer), torch.version, folder)
            print(cell.key, answer.get("allocated", answer["outcome"]), flush=True)


def _append(cell: Cell, torch_version: str, folder: Path) -> None:
    file = folder / f"{cell.model}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        head = {
            "what": WHAT,
            "versions": versions() | {"torch": torch_version},
            "commit": commit(),
            "steps": 2,
        }
        file.write_text(json.dumps(head) + "\n", encoding="utf-8")
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(cell.line()) + "\n")


def errors(cells: list[Cell], estimator: Estimator, *, whole: bool) -> list[tuple[Cell, float, float, float | None]]:
    """Return each cell with its relative errors: allocated, reserved, pinned (where some is)."""
    found = []
    for cell in cells:
        if cell.outcome == "ok":
            memory = predicted(estimator, cell, whole=whole)
            pinned = memory.pinned_bytes / cell.pinned - 1 if cell.pinned > MIB else None
            found.append(
                (cell, memory.allocated_bytes / cell.allocated - 1, memory.reserved_bytes / cell.reserved - 1, pinned)
            )
    return found


def grade(models: list[str], folder: Path, *, whole: bool) -> None:
    """Print the errors by model, strategy and card."""
    for model in models:
        cells = read_cells(model, folder)
        if not cells:
            continue
        found = errors(cells, estimator_for(load_config(resolve(model))), whole=whole)
        by_row = defaultdict(list)
        for cell, *values in found:
            by_row[cell.strategy, cell.card].append(values)
        print(f"\n{model}: {len(found)} cells of {len(cells)}; errors in %, median (least, most)\n")
        print("| strategy | card | allocated | reserved |\n|---|---|---:|---:|")
        for (strategy, card), rows in by_row.items():
            print(f"| {strategy} | {card} | {_spread([r[0] for r in rows])} | {_spread([r[1] for r in rows])} |")
        print(f"| all | | {_spread([r[1] for r in found])} | {_spread([r[2] for r in found])} |")


def _spread(values: list[float]) -> str:
    percent = [100 * value for value in values]
    return f"{statistics.median(percent):+.2f} ({min(percent):+.2f}, {max(percent):+.2f})"


def main() -> None:
    """Run what is missing, or grade."""
    parser = argparse.ArgumentParser(description="Torch's own byte counts on GPUs that are not there.")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--cards", nargs="+", default=list(CARDS))
    parser.add_argument("--strategies", nargs="+", default=[])
    parser.add_argument("--limit", type=int, help="cells to run at most")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--grade", action="store_true", help="run nothing; print the errors of the predictions")
    parser.add_argument("--sliced", action="store_true", help="grade the four small traces instead of whole ones")
    options = parser.parse_args()
    if options.grade:
        grade(options.models, options.out, whole=not options.sliced)
        return
    there = {cell.key for model in options.models for cell in read_cells(model, options.out)}
    left = [c for c in wanted(options.models, options.cards, options.strategies) if c.key not in there][: options.limit]
    for card in options.cards:
        cells = [cell for cell in left if cell.card == card]
        if cells:
            measure(cells, card, options.out)


if __name__ == "__main__":
    main()
