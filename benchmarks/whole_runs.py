"""Peaks of whole runs: placed, trained, saved, finished, merged, scored. Run: `python -m benchmarks.whole_runs`.

In: strategies. Out: `runs/whole-runs.jsonl`, one line for each run; what is there is not run again. `bigqa train`'s own
code runs with torch's CUDA build on a null GPU, once on a card with plenty of room, and once on one of the size that is
predicted, and 1% more. `--grade` runs nothing: it prints how far the predictions of this code are from the runs.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

from benchmarks.common import REPORTS
from benchmarks.null_cells import card_of, estimator_of
from bigqa.bench.cases import rows_on
from bigqa.files import write_json
from bigqa.memory.cards import card_for
from bigqa.memory.estimate import MemoryEstimate
from bigqa.nullgpu.build import libraries_for
from bigqa.nullgpu.cards import NullGpu
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import ask
from bigqa.nullgpu.torch_build import cuda_build
from bigqa.sample import FOLDER as SAMPLE
from bigqa.strategy import Strategy
from bigqa.units import MIB
from bigqa.versions import commit, versions

FILE = REPORTS / "whole-runs.jsonl"
WHAT = "whole runs of bigqa train with torch's allocator on a null GPU; kernels not run"
MODEL, SEQ_LEN, MICRO_BATCH, MICRO_BATCHES, STEPS = "enliple-small", 384, 8, 2, 3
ROOM = 400 * 1024 * MIB
SPARE = 1.01
"""Of the second card: what is predicted, and so much more."""
FIGURES = ("allocated", "reserved")
WITHOUT = ("zero3-nvme", "stream-disk", "stream-disk-8bit")
"""The first wants libaio; on a GPU the others do as `stream` and `stream-8bit` do, see tests/test_null_stream.py."""


@dataclass(frozen=True)
class Run:
    """One whole run."""

    strategy: str
    card: str = "A100-40"
    gpus: int = 1
    starts: Sequence[dict[str, Any]] = field(default=(), compare=False)
    """On the card with room."""
    memory: int = field(default=0, compare=False)
    """Of the card of the predicted size and a little more. Bytes."""
    tight: Sequence[dict[str, Any]] = field(default=(), compare=False)
    """The starts on it."""

    @property
    def key(self) -> str:
        """What tells it from every other run."""
        return f"{self.strategy} {self.card} of {self.gpus}"

    @property
    def axes(self) -> Strategy:
        """The strategy as the card has it."""
        return rows_of(self.card)[self.strategy]

    @property
    def micro_batch(self) -> int:
        """Windows of a forward pass."""
        return self.axes.micro_batch or MICRO_BATCH

    @property
    def micro_batches(self) -> int:
        """Forward passes of a step."""
        return MICRO_BATCH * MICRO_BATCHES // self.micro_batch

    def options(self, out: Path, data: Path) -> dict[str, Any]:
        """Return what `bigqa train` is told."""
        return {
            "model": MODEL,
            "tokenizer": str(SAMPLE),
            "train_file": str(data / "train.json"),
            "dev_file": str(data / "dev.json"),
            "out": str(out),
            "strategy": self.strategy,
            "device": "cuda",
            "seq_len": SEQ_LEN,
            "global_batch": MICRO_BATCH * MICRO_BATCHES * self.gpus,
            "micro_batch": self.micro_batch,
            "max_steps": STEPS,
            "save_every": STEPS - 1,
            "check": False,
        }


def rows_of(card: str) -> dict[str, Strategy]:
    """Return the strategies of a card, those that need a GPU."""
    rows = rows_on("cuda", "bf16" if card_of(card).has_bf16 else "fp16")
    return {name: row for name, row in rows.items() if name not in WITHOUT and row.seq_len is None}


def wanted() -> Iterator[Run]:
    """Yield the runs: every strategy on one card, those that are shared as the first of two."""
    for name in rows_of("A100-40"):
        yield Run(name)
    for name, row in rows_of("A100-40").items():
        if row.needs_deepspeed or name in ("plain", "recompute"):
            yield Run(name, gpus=2)
    for name in ("plain", "qlora-recompute", "zero2-offload", "zero3", "stream"):
        yield Run(name, card="T4")


def read_runs(file: Path = FILE) -> list[Run]:
    """Return the runs that are there."""
    lines = file.read_text(encoding="utf-8").splitlines()[1:] if file.is_file() else []
    return [Run(**json.loads(line)) for line in lines]


@functools.cache
def predicted(run: Run) -> MemoryEstimate:
    """Return what a plan says of a run."""
    card = card_of(run.card)
    return estimator_of(MODEL).estimate(
        run.axes,
        run.micro_batch,
        SEQ_LEN,
        accumulating=True,
        micro_batches=run.micro_batches,
        world_size=run.gpus,
        card=card_for(card.name, card.capability),
        whole=True,
    )


def write_data(folder: Path) -> None:
    """Write questions about texts of many windows, so that windows are full."""
    source = json.loads((SAMPLE / "train.json").read_text(encoding="utf-8"))["data"]
    text = " ".join(part["context"] for article in source for part in article["paragraphs"])
    for name, size, count in (("train", 8000, 8), ("dev", 12000, 2)):
        answer = {"text": text[:2], "answer_start": 0}
        qas = [{"id": f"{name}-{n}", "question": "누구인가?", "answers": [answer]} for n in range(count)]
        article = {"title": "", "paragraphs": [{"context": text[:size], "qas": qas}]}
        write_json(folder / f"{name}.json", {"version": "", "data": [article]})


class Bench:
    """What runs are made with."""

    def __init__(self, file: Path) -> None:
        self.file = file
        python = ask(Path(sys.executable))
        self.torch = cuda_build(python, install=False)
        self.libraries = libraries_for(python, self.torch, install=False)
        self.paths = () if python.torch == self.torch else (self.torch.folder,)

    def measure(self, runs: list[Run]) -> None:
        """Make runs of one kind of card, and write them down."""
        kind = card_of(runs[0].card)
        gpu = NullGpu(kind, context_bytes=0)
        environment = variables(gpu, self.libraries, self.paths, os.environ) | {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.whole_worker", "{}.{}".format(*kind.capability)]
        with (
            tempfile.TemporaryDirectory() as name,
            subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True) as worker,
        ):
            data = Path(name)
            write_data(data)
            for run in runs:
                memory = int(predicted(run).reserved_bytes * SPARE)
                found = [self._asked(worker, run, data, size) for size in (ROOM, memory)]
                self._append(run, found[0], memory, found[1])
            assert worker.stdin is not None
            worker.stdin.close()

    def _asked(self, worker: "subprocess.Popen[str]", run: Run, data: Path, memory: int) -> list[dict[str, Any]]:
        assert worker.stdin is not None and worker.stdout is not None
        gpu = NullGpu(card_of(run.card), count=run.gpus, memory_bytes=memory, context_bytes=0)
        with tempfile.TemporaryDirectory() as out:
            options = run.options(Path(out) / "run", data)
            job = {"card": gpu.description(), "ranks": run.gpus, "options": options}
            print(json.dumps(job), file=worker.stdin, flush=True)
            found: list[dict[str, Any]] = json.loads(worker.stdout.readline())
        return found

    def _append(self, run: Run, starts: list[dict[str, Any]], memory: int, tight: list[dict[str, Any]]) -> None:
        line = {"strategy": run.strategy, "card": run.card, "gpus": run.gpus}
        line |= {"starts": starts, "memory": memory, "tight": tight}
        lines = [line]
        if not self.file.is_file():
            there = versions() | {"torch": self.torch.version}
            lines.insert(0, {"what": WHAT, "versions": there, "commit": commit()})
        with self.file.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(one) + "\n" for one in lines)
        print(_told(Run(**line)), flush=True)  # type: ignore[arg-type]


def errors_of(run: Run) -> dict[str, float]:
    """Return how far the prediction is above what torch counted in a whole run, as shares of it.

    Of one that scored with more than its steps took, as there was room, the run on the card without room is looked at.
    """
    said, found = predicted(run), counted(run)
    least = dict(zip(FIGURES, said.least or (said.allocated_bytes, said.reserved_bytes), strict=True))
    return {name: _error(least[name], getattr(said, f"{name}_bytes"), found[name]) for name in FIGURES}


def _error(least: int, most: int, found: int) -> float:
    """Return how far a range is from what was found in it, above or below: nothing where it is within."""
    return max(least, min(found, most)) / found - 1


def judged(run: Run) -> dict[str, Any]:
    """Return the start that a prediction is held against."""
    start = run.starts[-1]
    took_more = reserved_by(start, "step") != reserved_by(start, "score")
    return run.tight[-1] if took_more and not run.tight[-1]["code"] else start


def reserved_by(start: dict[str, Any], part: str) -> int | None:
    """Return the most that was reserved up to the end of a part of a run; none: it did not come so far."""
    peaks = start.get("parts", {}).get(part)
    return peaks and int(peaks[1])


def counted(run: Run) -> dict[str, int]:
    """Return what a run took, as a prediction has it: scores are made within what steps reserved."""
    start = judged(run)
    return {"allocated": start["parts"]["write"][0], "reserved": start["reserved"]}


def _told(run: Run) -> str:
    for start in (run.starts[-1], run.tight[-1]):
        if start["code"]:
            return f"{run.key}: ended with {start['code']}\n{start.get('traceback', '')}"
    errors = (
        f"{name} {error:+.2%} ({made_by(run, index)})" for index, (name, error) in enumerate(errors_of(run).items())
    )
    return f"{run.key}: {', '.join(errors)}; {len(run.tight)} start on a card of the predicted size and a hundredth"


def made_by(run: Run, figure: int) -> str:
    """Return the part of a run that its peak is of. `figure`: 0 allocated, 1 reserved."""
    parts = judged(run)["parts"]
    most = max(peaks[figure] for peaks in parts.values())
    return next(part for part, peaks in parts.items() if peaks[figure] == most)


def main() -> None:
    """Run what is missing, or grade."""
    parser = argparse.ArgumentParser(description="Peaks of whole runs on GPUs that are not there.")
    parser.add_argument("--strategies", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--grade", action="store_true", help="run nothing; print the errors of the predictions")
    options = parser.parse_args()
    there = read_runs(options.out)
    if options.grade:
        print("\n".join(map(_told, there)))
        return
    known = {run.key for run in there}
    left = [r for r in wanted() if r.key not in known and (not options.strategies or r.strategy in options.strategies)]
    bench = Bench(options.out)
    for card in dict.fromkeys(run.card for run in left):
        bench.measure([run for run in left if run.card == card])


if __name__ == "__main__":
    main()
