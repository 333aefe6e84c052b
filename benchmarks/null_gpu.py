"""Ground truth of memory: torch's own allocator on GPUs that are not there. Run: `python -m benchmarks.null_gpu`.

In: models, cards, strategies. Out: one file for each model in `runs/null-gpu/`; cells that are there are not run again.
One process for each card imports everything and forks for each cell. `--grade` runs nothing: it prints how far the
predictions of this code are from the cells; `--list` prints how many there are to be; `--caps` runs some of them once
more, on cards of the size that is predicted.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

from benchmarks import null_caps
from benchmarks.null_cells import CARDS, FOLDER, MODELS, WHAT, Cell, card_of, left_out, read_cells, wanted
from benchmarks.null_grade import grade
from bigqa.bench.cases import rows_on
from bigqa.errors import BigqaError
from bigqa.nullgpu.build import libraries_for
from bigqa.nullgpu.cards import NullGpu
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import ask
from bigqa.nullgpu.torch_build import cuda_build
from bigqa.units import MIB
from bigqa.versions import commit, versions

ROOM = 400 * 1024 * MIB
"""Memory of each card: a cell says what is needed, whether the card has it or not."""
_writing = threading.Lock()


class Bench:
    """What cells are measured with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packs: dict[str, bool] = {}
        """Whether each model packs: tried once, not on every card."""
        self.python = ask(Path(sys.executable))
        self.torch = cuda_build(self.python, install=False)
        self.libraries = libraries_for(self.python, self.torch, install=False)

    def measure(self, cells: list[Cell]) -> None:
        """Run cells of one kind of card and append them to their models' files."""
        left = iter(cells)
        while True:
            with self._worker(cells[0]) as worker:
                if all(self._ask(worker, cell) for cell in left):
                    return

    def _worker(self, first: Cell) -> "subprocess.Popen[str]":
        """Begin a process that measures cells like the first."""
        gpu = NullGpu(card_of(first.card), count=first.gpus, memory_bytes=ROOM, context_bytes=0)
        paths = () if self.python.torch == self.torch else (self.torch.folder,)
        environment = variables(gpu, self.libraries, paths, os.environ)
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.null_worker", "{}.{}".format(*gpu.card.capability)]
        return subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True)

    def _ask(self, worker: "subprocess.Popen[str]", cell: Cell) -> bool:
        """Have a cell measured, and write it down. Returns: whether the worker is still there."""
        began = time.monotonic()
        answer, is_there = self._answer(worker, cell)
        self._append(Cell(**vars(cell) | answer))
        found = answer.get("allocated", answer["outcome"])
        print(f"{cell.key}: {found} ({time.monotonic() - began:.1f} s)", flush=True)
        return is_there

    def _answer(
        self, worker: "subprocess.Popen[str]", cell: Cell, gpu: NullGpu | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Return what was measured of a cell, and whether the worker is there. `gpu`: another than the worker's."""
        assert worker.stdin is not None and worker.stdout is not None
        case = json.loads(cell.case().model_dump_json())
        asked = {"case": case, "gpus": cell.gpus, "packs": self.packs.get(cell.model)}
        asked |= {} if gpu is None else {"environment": gpu.variables()}
        print(json.dumps(asked), file=worker.stdin, flush=True)
        answer = json.loads(worker.stdout.readline() or "{}")
        is_there = bool(answer)
        if not is_there:
            answer = {"outcome": "failed", "traceback": f"the worker ended with {worker.wait()}"}
        packs = answer.pop("packs", None)
        self.packs |= {} if packs is None else {cell.model: packs}
        return answer, is_there

    def cap(self, cells: list[Cell], file: Path) -> None:
        """Run cells on cards of the predicted size, and write down what became of them: one process for all cards."""
        with self._worker(cells[0]) as worker:

            def run(cell: Cell, gpu: NullGpu) -> str:
                answer, is_there = self._answer(worker, cell, gpu)
                if answer["outcome"] == "failed":
                    print(answer["traceback"], file=sys.stderr)
                if not is_there:
                    raise BigqaError(f"{cell.key}: {answer['traceback']}; run it again, it goes on where it was")
                return str(answer["outcome"])

            for cell in cells:
                capped = null_caps.measure(cell, run)
                null_caps.append(capped, {"versions": self._versions(), "commit": commit()}, file)
                print(f"{capped.cell}: {capped.outcomes}", flush=True)

    def _versions(self) -> dict[str, Any]:
        return versions() | {"torch": self.torch.version}

    def _append(self, cell: Cell) -> None:
        file = self.folder / f"{cell.model}.jsonl"
        lines = [cell.line()]
        with _writing:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                lines.insert(0, {"what": WHAT, "versions": self._versions(), "commit": commit(), "steps": 2})
            with file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(line) + "\n" for line in lines)


def forget_failed(models: list[str], folder: Path) -> None:
    """Take the cells that failed out of the files, so that they are run again."""
    for model in models:
        file = folder / f"{model}.jsonl"
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line).get("outcome") != "failed"]
            file.write_text("\n".join(kept) + "\n", encoding="utf-8")


def tell(models: list[str], cells: list[Cell]) -> None:
    """Print how many cells there are to be, and which strategies have none on a card."""
    counts = Counter(cell.model for cell in cells)
    print(f"{len(cells)} cells: " + ", ".join(f"{model} {counts[model]}" for model in models))
    for name in CARDS:
        card = card_of(name)
        for row, axes in rows_on("cuda", "bf16" if card.has_bf16 else "fp16").items():
            if reason := left_out(axes, card):
                print(f"left out: {row} on {name}: {reason}")


def run_capped(limit: int | None, file: Path = null_caps.FILE) -> None:
    """Run cells on cards of the predicted size, those that are missing; print how they ended."""
    there = {one.cell for one in null_caps.read_capped(file)}
    left = [cell for cell in null_caps.drawn() if cell.key not in there][:limit]
    if left:
        Bench(FOLDER).cap(sorted(left, key=lambda cell: MODELS.index(cell.model)), file)
    print(null_caps.told(null_caps.read_capped(file)))


def main() -> None:
    """Run what is missing, or grade."""
    parser = argparse.ArgumentParser(description="Torch's own byte counts on GPUs that are not there.")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--cards", nargs="+", default=list(CARDS))
    parser.add_argument("--strategies", nargs="+", default=[])
    parser.add_argument("--limit", type=int, help="cells to run at most, of each model")
    parser.add_argument("--workers", type=int, default=1, help="cards at once")
    parser.add_argument("--retry", action="store_true", help="run cells again that failed")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--list", action="store_true", help="run nothing; print how many cells there are to be")
    parser.add_argument("--grade", action="store_true", help="run nothing; print the errors of the predictions")
    parser.add_argument("--caps", action="store_true", help="run some cells on cards of the size that is predicted")
    options = parser.parse_args()
    if options.grade:
        grade(options.models, options.out)
        return
    if options.caps:
        run_capped(options.limit)
        return
    if options.retry:
        forget_failed(options.models, options.out)
    there = {cell.key for model in options.models for cell in read_cells(model, options.out)}
    cells = list(wanted(options.models, options.cards, options.strategies))
    if options.list:
        tell(options.models, cells)
        return
    left: list[Cell] = []
    for model in options.models:
        left += [cell for cell in cells if cell.model == model and cell.key not in there][: options.limit]
    bench = Bench(options.out)
    groups = [[c for c in left if (c.card, c.gpus) == kind] for kind in dict.fromkeys((c.card, c.gpus) for c in left)]
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(bench.measure, groups))


if __name__ == "__main__":
    main()
