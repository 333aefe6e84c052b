"""Host memory of streamed steps on a CPU, in a process of its own and within a limit. Out: a table, and a report.

    python -m benchmarks.streaming_memory enliple-large-v1 stream --seq-len 128
    python -m benchmarks.streaming_memory llama-7b stream-disk-8bit --folder DIR --limit 8GiB

Where Linux lets it, the process is in a group of its own whose memory is limited and counted by the kernel, with the
pages of files that it has in use; else what is resident of it is all that is known, and nothing limits it. The model is
made without data, and each weight, at random, as it is put in its place: a model that is larger than memory is not in
memory first. Every micro-batch is one window, or several, of full length.
"""

import sys

from bigqa.machine.heap import hold_tight

if __name__ == "__main__" and "--child" in sys.argv:
    hold_tight()  # as a run does, before torch is imported

import argparse
import contextlib
import functools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import REPORTS
from benchmarks.tables import put_between
from bigqa.files import read_json, write_json
from bigqa.units import GIB, format_bytes, parse_bytes
from bigqa.versions import commit, versions

RUNS = REPORTS / "streaming"
GROUPS = Path("/sys/fs/cgroup")
BLOCK = 2**22
"""Random numbers, of which weights are made: drawing billions would take minutes."""


class Group:
    """A group of processes whose memory the kernel limits and counts."""

    def __init__(self, folder: Path, *, second: bool) -> None:
        """`second`: of the second version of Linux's groups."""
        self.folder = folder
        self.limit, self.peak = (
            ("memory.max", "memory.peak") if second else ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        )

    def take(self) -> None:
        """Put this process into it."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int | None:
        """Return the most that it held."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / self.peak).read_text())
        return None


@contextlib.contextmanager
def group_of(limit_bytes: int | None) -> Iterator[Group | None]:
    """Make a group below this process's own; yield none where that may not be done."""
    parent, second = own_group()
    group = Group(parent / f"bigqa-{os.getpid()}", second=second)
    try:
        group.folder.mkdir()
        if limit_bytes is not None:
            (group.folder / group.limit).write_text(str(limit_bytes))
    except OSError as error:
        print(f"no group of its own: {error}; the limit does not hold")
        with contextlib.suppress(OSError):
            group.folder.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        group.folder.rmdir()


def own_group() -> tuple[Path, bool]:
    """Return the folder of this process's group of memory, and whether it is of the second version."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "memory":
            return GROUPS / "memory" / path.lstrip("/"), False
        if not kinds and (GROUPS / path.lstrip("/") / "memory.peak").is_file():
            return GROUPS / path.lstrip("/"), True
    return GROUPS / "none", True


def run(asked: argparse.Namespace) -> None:
    """Train the steps: the process that is measured."""
    import torch

    from bigqa.bench.cases import rows_on
    from bigqa.engine.build import change_modules
    from bigqa.engine.lazy import Lazy
    from bigqa.engine.loop.meter import peak_resident_bytes
    from bigqa.engine.loop.step import Parts, train_step
    from bigqa.engine.stream.building import Rates, streamed

    task, model = made_without_data(asked)
    strategy = rows_on("cpu", "bf16", (asked.row,))[asked.row]
    change_modules(model, strategy)
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(1)) * 0.02
    made = Lazy({name: functools.partial(drawn, name, one.shape, block) for name, one in model.named_parameters()})
    rates = Rates(eps=1e-6, clip=1.0, weight_decay=0.01)
    device = torch.device("cpu")
    began = time.perf_counter()
    passes, update = streamed(model, task, strategy, device, rates, folder=asked.folder, made=made)
    parts = Parts(model=model.train(), update=update, task=task, packs=True, passes=passes)
    say(f"in place after {time.perf_counter() - began:.0f} s, {format_bytes(peak_resident_bytes())} at most")
    steps = []
    for step in range(asked.steps):
        torch.manual_seed(step)
        update.set_rate(1e-4)
        update.begin(step, 0)
        rows = [window(asked, model.config.vocab_size, step, number) for number in range(asked.micro_batch)]
        clock, processor, before = time.perf_counter(), time.process_time(), disk_bytes()
        loss, norm = train_step(parts, [task.pack(rows)] * asked.micro_batches, asked.micro_batch * asked.micro_batches)
        steps.append({
            "loss": float(loss), "norm": float(norm), "clock_s": time.perf_counter() - clock,
            "processor_s": time.process_time() - processor,
            **{name: after - before[name] for name, after in disk_bytes().items()},
        })  # fmt: skip
        say(f"step {step}: {json.dumps(steps[-1])}")
    shelf = passes.slots.shelf
    report = {"steps": steps, "peak_resident_bytes": peak_resident_bytes(), "disk_bytes": shelf.disk_bytes}
    print(json.dumps(report | {"parameters": sum(one.low.numel() for one in update.placed.weights.values())}))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def made_without_data(asked: argparse.Namespace) -> tuple[Any, Any]:
    """Return the task, and a model whose buffers alone have data."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForQuestionAnswering

    from bigqa.models.sources import first_position
    from bigqa.tasks.qa.task import QuestionAnswering

    config = config_of(asked)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32)
    takes_types = getattr(config, "type_vocab_size", 0) > 1
    return QuestionAnswering(config.pad_token_id or 0, takes_types, first_position(config)), model


def config_of(asked: argparse.Namespace) -> Any:
    from benchmarks.null_cells import source_of
    from bigqa.memory.depth import with_layers
    from bigqa.models.sources import load_config, resolve

    config = load_config(resolve(source_of(asked.model)))
    return with_layers(config, asked.layers) if asked.layers else config


def drawn(name: str, shape: Any, block: Any) -> Any:
    """Return random weights; of a norm ones, of a bias zeros."""
    import torch

    if len(shape) == 1:
        return torch.full(shape, float("norm" in name.lower() and name.endswith("weight")))
    count = shape.numel()
    return block.repeat(-(-count // BLOCK))[:count].view(shape)


def window(asked: argparse.Namespace, vocabulary: int, step: int, number: int) -> dict[str, Any]:
    """Return a full window of random tokens."""
    import torch

    generator = torch.Generator().manual_seed(1000 * step + number)
    ids = torch.randint(1, vocabulary, (asked.seq_len,), generator=generator).tolist()
    return {"input_ids": ids, "token_type_ids": [0] * asked.seq_len, "start": 3, "end": 9}


def disk_bytes() -> dict[str, int]:
    """Return what this process has had read of disks and written to them, as the kernel counts it."""
    found = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return {"disk_read_bytes": int(found["read_bytes"]), "disk_written_bytes": int(found["write_bytes"])}


def predicted(asked: argparse.Namespace) -> dict[str, int]:
    """Return what is predicted of a run."""
    from bigqa.bench.cases import rows_on
    from bigqa.plan.planner import estimator_for

    estimator, row = estimator_for(config_of(asked)), rows_on("cpu", "bf16", (asked.row,))[asked.row]
    options: dict[str, Any] = {"accumulating": asked.micro_batches > 1, "micro_batches": asked.micro_batches}
    memory = estimator.estimate(row, asked.micro_batch, asked.seq_len, **options)
    work = estimator.footprint(row, asked.micro_batch, asked.seq_len, **options)
    return {
        "host_bytes": memory.host_bytes, "disk_bytes": memory.disk_bytes, "read_bytes": work.read_bytes,
        "written_bytes": work.written_bytes, "parameters": estimator.num_parameters,
    }  # fmt: skip


def table(folder: Path = RUNS) -> str:
    """Return the Markdown table of all reports."""
    heads = ("model", "row", "windows", "limit", "resident", "of the group", "bytes a parameter beyond 1.2 GiB", "disk")
    heads += ("read, written a step", "predicted", "processor s a step")
    lines = [f"| {' | '.join(heads)} |", f"|---|---|---|{'---:|' * (len(heads) - 3)}"]
    for file in sorted(folder.glob("memory-*.json")):
        report = read_json(file, "the report")
        found, expected, last = report["measured"], report["predicted"], report["measured"]["steps"][-1]
        layers = f", {report['layers']} layers" if report["layers"] else ""
        on_disk = bool(expected["disk_bytes"])
        moved = f"{last['disk_read_bytes'] / GIB:.1f}, {last['disk_written_bytes'] / GIB:.1f} GiB"
        planned = f"{expected['read_bytes'] / GIB:.1f}, {expected['written_bytes'] / GIB:.1f} GiB"
        beyond = (found["peak_resident_bytes"] - 1.2 * GIB) / found["parameters"]
        cells = [
            report["model"] + layers, report["row"],
            f"{report['micro_batches']} x {report['micro_batch']} x {report['seq_len']}",
            format_bytes(report["limit"]) if report["limit"] and found["limited"] else "-",
            format_bytes(found["peak_resident_bytes"]),
            format_bytes(found["peak_group_bytes"]) if found["peak_group_bytes"] else "-",
            f"{beyond:.2f}" if beyond > 0 else "none", format_bytes(found["disk_bytes"]) if on_disk else "-",
            moved if on_disk else "-", planned if on_disk else "-", f"{last['processor_s']:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure a row, print, and keep; or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("row", nargs="?")
    parser.add_argument("--table", action="store_true", help="run nothing; write benchmarks/README.md from the reports")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, help="Fewer than the model has.")
    parser.add_argument("--limit", type=parse_bytes)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.table:
        put_between("streamed-memory", table(asked.out))
        return
    if asked.child:
        run(asked)
        return
    expected = predicted(asked)
    with group_of(asked.limit) as group:
        enter: Callable[[], None] | None = group.take if group is not None else None
        command = [sys.executable, "-m", "benchmarks.streaming_memory", *sys.argv[1:], "--child"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, preexec_fn=enter)
        peak = group.peak_bytes() if group is not None else None
    if done.returncode:
        raise SystemExit(f"ended with {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1]) | {"peak_group_bytes": peak, "limited": group is not None}
    words = {name: value for name, value in vars(asked).items() if name not in ("out", "folder", "child", "table")}
    report = words | {"predicted": expected, "measured": found, "commit": commit(), "versions": versions()}
    beyond = found["peak_resident_bytes"] - 1.2 * GIB
    print(f"resident {format_bytes(found['peak_resident_bytes'])}, predicted {format_bytes(expected['host_bytes'])}")
    print(f"of the group, with pages of files, {format_bytes(peak)}" if peak else "no group")
    print(f"beyond 1.2 GiB: {beyond / found['parameters']:.2f} bytes a parameter of {found['parameters']:,}")
    print(f"disk {format_bytes(found['disk_bytes'])}, predicted {format_bytes(expected['disk_bytes'])}")
    name = f"memory-{asked.model}-{asked.row}{f'-{asked.layers}-layers' if asked.layers else ''}.json"
    write_json(asked.out / name, report, indent=1)


if __name__ == "__main__":
    main()
