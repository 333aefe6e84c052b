"""What streaming costs on a CPU, where it gains nothing: steps in turns with those of plain training that recomputes.

In: a model and the shape of a step. Out: a table, and a report in `benchmarks/runs/streaming`. Both are trained in one
process, step by step in turns, so that whatever else the machine does meets both alike; with `--apart`, where memory is
too little for both at once, each turn of a row is a process of its own: a step to warm up, and one that counts.
Processor time is what counts where the machine does other things; the clock is there too. Other work makes steps slower
and never faster: the least of many turns is told beside the median.

    python -m benchmarks.streaming MODEL --seq-len 384 --micro-batch 4 --micro-batches 4 --turns 5
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import run_module
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.processes import Processes
from bigqa.files import write_text
from bigqa.memory.depth import with_layers
from bigqa.models.sources import load_config, load_model, resolve

RUNS = Path(__file__).parent / "runs" / "streaming"
ROWS = ("cpu-recompute", "stream")
WARM_UP = 1


def parts_of(row: str, asked: argparse.Namespace, processes: Processes, folder: Path) -> tuple[Parts, list[Any]]:
    """Return what a step of a row works on, and its micro-batches."""
    axes = rows_on("cpu", asked.precision, (row,))[row]
    case = Case(
        model=asked.model, strategy=row, axes=axes, seq_len=asked.seq_len, micro_batch=asked.micro_batch,
        global_batch=asked.micro_batch * asked.micro_batches, steps=1,
    )  # fmt: skip
    settings = worker.settings_of(case, folder)
    training = worker.training_of(case, settings, processes, Silent(), model_of(asked, settings.seed))
    training.parts.model.train()
    return training.parts, training.feed().take(0)


def model_of(asked: argparse.Namespace, seed: int) -> Any:
    """Make the model, of as many layers as are asked for; its weights at random."""
    source = resolve(asked.model).model_copy(update={"has_weights": False})
    config = load_config(source)
    return load_model(source, with_layers(config, asked.layers) if asked.layers else config, seed=seed)


Steps = dict[str, list[dict[str, float]]]


def measured(asked: argparse.Namespace, names: Sequence[str] = ROWS) -> Steps:
    """Return each row's steps: seconds of processor time and by the clock."""
    processes, found = Processes("cpu"), {row: [] for row in names}  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory() as folder:
        rows = {row: parts_of(row, asked, processes, Path(folder)) for row in names}
        for turn in range(WARM_UP + asked.turns):
            for row in names if turn % 2 else reversed(names):
                parts, batches = rows[row]
                parts.update.set_rate(1e-5)
                parts.update.begin(turn, 0)
                torch.manual_seed(turn)
                processor, clock = time.process_time(), time.perf_counter()
                train_step(parts, batches, asked.micro_batch * asked.micro_batches)
                if turn >= WARM_UP:
                    found[row].append(
                        {"processor_s": time.process_time() - processor, "clock_s": time.perf_counter() - clock}
                    )
    return found


def measured_apart(asked: argparse.Namespace) -> Steps:
    """Do as `measured`, each turn of a row in a process of its own."""
    found: Steps = {row: [] for row in ROWS}
    options = {"--seq-len": asked.seq_len, "--micro-batch": asked.micro_batch, "--micro-batches": asked.micro_batches}
    options |= {"--turns": 1, "--precision": asked.precision}
    options |= {"--layers": asked.layers} if asked.layers else {}
    words = [asked.model, *(word for option in options.items() for word in option)]
    for turn in range(asked.turns):
        for row in ROWS if turn % 2 else reversed(ROWS):
            said = run_module("benchmarks.streaming", *words, "--only", row)
            found[row] += json.loads(said.splitlines()[-1])
            print(row, found[row][-1], flush=True)
    return found


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--seq-len", type=int, default=384)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--layers", type=int, help="Fewer than the model has.")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--only", choices=ROWS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measured(asked, (asked.only,))[asked.only]))
        return
    found = measured_apart(asked) if asked.apart else measured(asked)
    medians = {
        row: {kind: statistics.median(step[kind] for step in steps) for kind in steps[0]}
        for row, steps in found.items()
    }
    least = {row: {kind: min(step[kind] for step in steps) for kind in steps[0]} for row, steps in found.items()}
    for name, figures in (("median", medians), ("least", least)):
        for kind in figures[ROWS[0]]:
            plain, streamed = (figures[row][kind] for row in ROWS)
            print(f"{kind}, {name}: {ROWS[0]} {plain:.3f}, {ROWS[1]} {streamed:.3f}, {streamed / plain - 1:+.1%}")
    words = {name: value for name, value in vars(asked).items() if name not in ("out", "only")}
    shape = f"{asked.micro_batch}x{asked.seq_len}x{asked.micro_batches}"
    layers = f"-{asked.layers}-layers" if asked.layers else ""
    name = f"{asked.model}{layers}-{asked.precision}-{shape}.json"
    report = words | {"threads": torch.get_num_threads(), "medians": medians, "least": least, "steps": found}
    write_text(asked.out / name, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
