"""Streamed layers on a GPU that is not there, beside what DeepSpeed needs at its best. Out: a table, and speeds.

    python -m benchmarks.streaming_gpu            # measures what is missing in runs/streaming/gpu.jsonl
    python -m benchmarks.streaming_gpu --table    # writes benchmarks/README.md

torch's own allocator on a null GPU, an A100 of 80 GB in bf16, two steps; the bytes that cross the link in the last of
them are counted by the null GPU itself. Streamed rows are measured at both of its bounds: with everything done at once,
and with everything done only when the host waits. DeepSpeed's ZeRO-3 with everything offloaded runs as bigqa sets it
up, and with the buckets with which it needs least. Kernels and the update are not run; weights are not filled.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

from benchmarks.common import REPORTS
from benchmarks.null_cells import card_of, estimator_of, source_of
from benchmarks.tables import put_between
from bigqa.bench.report import Case
from bigqa.memory.cards import card_for
from bigqa.memory.estimate import MemoryEstimate
from bigqa.memory.scaling import Footprint
from bigqa.nullgpu.cards import Bound
from bigqa.speed.throughput import Shape, gpu_rates, link_s, speed_of
from bigqa.strategy import STRATEGIES, Strategy, with_low_precision
from bigqa.units import GIB, MIB, format_bytes
from bigqa.versions import commit, versions

FILE = REPORTS / "streaming" / "gpu.jsonl"
CARD = "A100-80"
LEAST = {
    "reduce_bucket_size": 2**20, "allgather_bucket_size": 2**20, "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 0,
    "overlap_comm": False,
}  # fmt: skip
"""DeepSpeed's settings for as little memory as it can do with: nothing ahead, nothing kept, small buckets."""


@dataclass(frozen=True)
class Row:
    """What is measured: a step of a model under a strategy."""

    model: str
    strategy: str
    micro_batch: int = 1
    seq_len: int = 384
    micro_batches: int = 1
    settings: str = ""
    """`least`: of DeepSpeed, in the place of bigqa's."""
    bound: Bound = "least"
    """Of the null GPU."""

    @property
    def axes(self) -> Strategy:
        """As the card has it."""
        return STRATEGIES[self.strategy]

    def case(self) -> Case:
        """Return what is run."""
        return Case(
            model=source_of(self.model), strategy=self.strategy, axes=self.axes, seq_len=self.seq_len,
            micro_batch=self.micro_batch, global_batch=self.micro_batch * self.micro_batches, steps=0,
        )  # fmt: skip


LARGE = "enliple-large-v1"
SHOWN = (
    Row(LARGE, "stream"),
    Row(LARGE, "stream", micro_batches=4),
    Row(LARGE, "stream", 4, 512, 4),
    Row(LARGE, "stream-8bit", micro_batches=4),
    Row(LARGE, "stream-disk", micro_batches=4),
    Row(LARGE, "stream-disk-8bit", micro_batches=4),
    Row(LARGE, "zero3-offload", micro_batches=4),
    Row(LARGE, "zero3-offload", micro_batches=4, settings="least"),
    Row("llama-7b", "stream"),
    Row("llama-7b", "stream-disk-8bit"),
    Row("xlm-roberta-xl", "stream"),
    Row("xlm-roberta-xl", "stream-disk-8bit"),
)
ROWS = (*SHOWN, *(replace(row, bound="most") for row in SHOWN if row.axes.stream))
MOST = {
    (LARGE, 1, 384): 160 * MIB,
    (LARGE, 4, 512): 300 * MIB,
    ("llama-7b", 1, 384): int(1.6 * GIB),
    ("xlm-roberta-xl", 1, 384): int(0.7 * GIB),
}
"""Model, micro-batch, length -> what streamed layers may reserve."""
OTHERS = (
    ("MegaTrain, decoders of 7B and more", "4 to 9 GB", "12 GB a billion", "arXiv 2604.05091"),
    ("SlideFormer, decoders on one RTX 4090", "half of offload's", "40% less than offload's", "arXiv 2603.16428"),
    ("torchao CPUOffload, ViT of 1.1B, gradients offloaded", "4.01 GB", "4 x the model", "torchao/optim/README.md"),
    ("torchtune, Llama 3.1 8B, bf16, 8-bit states", "18.9 GiB", "-", "its README at bd2a0fc"),
)
"""What others show for a full fine-tuning: of the GPU, of the host, and where."""


def predicted(row: Row) -> tuple[MemoryEstimate, Footprint]:
    """Return what is predicted of a row."""
    card, estimator = card_of(CARD), estimator_of(row.model)
    options: dict[str, Any] = {"accumulating": row.micro_batches > 1, "micro_batches": row.micro_batches}
    options["card"] = card_for(card.name, card.capability)
    asked = row.axes, row.micro_batch, row.seq_len
    return estimator.estimate(*asked, **options), estimator.footprint(*asked, **options)


def read_rows(file: Path = FILE) -> dict[Row, dict[str, Any]]:
    """Return what was measured."""
    if not file.is_file():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    return {Row(**line["row"]): line["found"] for line in lines}


def measure(rows: list[Row], file: Path, bound: Bound) -> None:
    """Measure rows of one bound in one process, and write them down."""
    from bigqa.nullgpu.build import libraries_for
    from bigqa.nullgpu.cards import NullGpu
    from bigqa.nullgpu.environment import variables
    from bigqa.nullgpu.python import ask
    from bigqa.nullgpu.torch_build import cuda_build

    python = ask(Path(sys.executable))
    torch = cuda_build(python, install=False)
    gpu = NullGpu(card_of(CARD), memory_bytes=400 * GIB, context_bytes=0, bound=bound)
    paths = () if python.torch == torch else (torch.folder,)
    environment = variables(gpu, libraries_for(python, torch, install=False), paths, os.environ)
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.streaming_gpu", "--worker"]
    worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None and worker.stdout is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        what = {"what": "two steps with torch's allocator on a null GPU; kernels not run", "card": CARD}
        what |= {"versions": versions() | {"torch": torch.version}, "commit": commit()}
        file.write_text(json.dumps(what) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps(asdict(row)), file=worker.stdin, flush=True)
        found = json.loads(worker.stdout.readline() or '{"outcome": "the worker ended"}')
        print(row, found, flush=True)
        if found["outcome"] == "ok":
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"row": asdict(row), "found": found}) + "\n")
    worker.stdin.close()
    worker.wait()


def work() -> None:
    """Measure what is asked for on standard input: runs on the null GPU."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from benchmarks import null_worker

    null_worker.import_libraries(card_of(CARD).capability)
    null_worker.LONGEST_S = 1800
    for line in sys.stdin:
        row = Row(**json.loads(line))
        null_worker.prepare(row.case(), True)
        print(json.dumps(null_worker.in_a_fork(measured, row)), file=answers, flush=True)


def measured(row: Row) -> dict[str, Any]:
    """Measure a row in this process."""
    from benchmarks import null_worker
    from bigqa.engine import build
    from bigqa.engine.loop import fit

    crossed: list[tuple[int, int]] = []
    configured, stepped = build.deepspeed_config, fit.train_step

    def counted(*args: Any) -> Any:
        """Take a step, and note what has crossed the link by its end."""
        found = stepped(*args)
        library = ctypes.CDLL("libcuda.so.1")
        library.null_crossed.restype = ctypes.c_size_t
        crossed.append((library.null_crossed(0), library.null_crossed(1)))
        return found

    def least(*args: Any, **options: Any) -> dict[str, Any]:
        config = configured(*args, **options)
        config["zero_optimization"] |= LEAST
        return config

    settings = least if row.settings == "least" else configured
    # A file of holes: a disk need not have room for states that nobody looks at.
    holes = patch.object(os, "posix_fallocate", lambda *args: None)
    with patch.object(fit, "train_step", counted), patch.object(build, "deepspeed_config", settings), holes:
        found = null_worker.measure(row.case(), 1, {})
    (in_before, out_before), (in_after, out_after) = crossed[-2:]
    return found | {"arrived": in_after - in_before, "left": out_after - out_before}


def table(file: Path = FILE) -> str:
    """Return the table of what was measured, and of what others show."""
    lines = [
        "| model | row | windows | micro-batches | allocated | reserved | predicted | host, predicted | disk |"
        " link in, out a step |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    measured_rows = read_rows(file)
    for row in SHOWN:
        found, most = (measured_rows.get(one) for one in (row, replace(row, bound="most")))
        memory, work = predicted(row)
        sizes = [format_bytes(found[name]) if found else "-" for name in ("allocated", "reserved")]
        if found and most and most["reserved"] != found["reserved"]:
            sizes[-1] += f" to {format_bytes(most['reserved'])}"
        name = f"{row.strategy}{f', {row.settings} settings' if row.settings else ''}"
        reserved = memory.least[1] if memory.least else memory.reserved_bytes  # all micro-batches are full here
        sizes.append("-" if row.settings else format_bytes(reserved))
        sizes += [format_bytes(memory.host_bytes), format_bytes(memory.disk_bytes) if memory.disk_bytes else "-"]
        crossed = (found["arrived"], found["left"]) if found else (work.arriving_bytes, work.leaving_bytes)
        link = ", ".join(map(format_bytes, crossed)) + ("" if found else " (predicted)")
        shape = f"{row.micro_batch} x {row.seq_len} | {row.micro_batches}"
        lines.append(f"| {row.model} | {name} | {shape} | {' | '.join(sizes)} | {link} |")
    lines += ["", "| others, of their own accounts | GPU | host | where |", "|---|---:|---:|---|"]
    lines += [f"| {' | '.join(other)} |" for other in OTHERS]
    return "\n".join(lines)


SPEED_CARDS = ("T4", "A100-40", "4090")
ACCUMULATIONS = (1, 4, 16)
SPEED_SHAPE = (4, 384)


def speed_table(model: str = LARGE) -> str:
    """Return predicted windows a second, and the share of a step that the link is busy."""
    micro_batch, seq_len = SPEED_SHAPE
    heads = [f"{name} x {count}" for name in SPEED_CARDS for count in ACCUMULATIONS]
    lines = [f"| row | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in ("recompute", "zero3-offload", "stream", "stream-8bit", "stream-disk-8bit"):
        cells = []
        for card in map(card_of, SPEED_CARDS):
            strategy = with_low_precision(STRATEGIES[name], "bf16" if card.has_bf16 else "fp16")
            for count in ACCUMULATIONS:
                if strategy.precision == "bf16-sr" and not card.has_bf16:
                    cells.append("no bf16")
                    continue
                work = estimator_of(model).footprint(
                    strategy, micro_batch, seq_len, accumulating=count > 1, micro_batches=count,
                    card=card_for(card.name, card.capability),
                )  # fmt: skip
                parameters = estimator_of(model).num_parameters
                shape = Shape(
                    micro_batch=micro_batch, seq_len=seq_len, num_micro_batches=count, num_parameters=parameters
                )
                speed = speed_of(work, strategy, gpu_rates(card), shape)
                share = f" ({link_s(work, strategy, gpu_rates(card)) / speed.step_s:.0%})" if strategy.stream else ""
                cells.append(f"{speed.samples_per_s:.3g}{share}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="run nothing; write benchmarks/README.md from the reports")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", help="those alone")
    asked = parser.parse_args()
    if asked.worker:
        work()
        return
    if asked.table:
        put_between("streamed", table(asked.out))
        put_between("streamed-speed", speed_table())
        return
    there = read_rows(asked.out)
    left = [row for row in ROWS if row not in there and (not asked.models or row.model in asked.models)]
    for bound in get_args(Bound):
        of_bound = [row for row in left if row.bound == bound]
        if of_bound:
            measure(of_bound, asked.out, bound)


if __name__ == "__main__":
    main()
