"""Training speed and memory on data sets of 1k, 10k and 100k windows. Run: `python -m benchmarks.growth`.

In: the texts of the embedded sample. Out: `runs/growth/growth.json`, and a table in README.md. Sizes take turns, each
run in a process of its own. What grows with the data must be the time to make features alone, which is measured apart.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import REPORTS, metrics, read_report, run_module, spread, train, write_report
from benchmarks.tables import put_between
from bigqa.engine.loop.meter import peak_resident_bytes
from bigqa.files import read_json, write_json
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.sample import FOLDER
from bigqa.tasks.features import build_features
from bigqa.tasks.windows import Lengths

NAME = "growth"
SIZES = (1_000, 10_000, 100_000)
LENGTHS = {"seq_len": 128, "doc_stride": 64, "max_query_length": 32}
OPTIONS = {"model": "tiny", "device": "cpu", "global_batch": 16, "micro_batch": 16, "precision": "bf16", "dropout": 0.0}
WARM = 5
"""Steps that are not counted."""


def write_data(file: Path, windows: int) -> None:
    """Write SQuAD-like JSON with so many questions; the sample's contexts are short enough for a window each."""
    source = read_json(FOLDER / "train.json", "the sample")
    pairs = [
        (part["context"], qa) for article in source["data"] for part in article["paragraphs"] for qa in part["qas"]
    ]
    groups = [
        (context, [qa for _, qa in group]) for context, group in itertools.groupby(pairs, key=lambda pair: pair[0])
    ]
    paragraphs = list(itertools.islice(_numbered(itertools.cycle(groups)), windows))
    write_json(file, {"data": [{"title": str(number), "paragraphs": [one]} for number, one in enumerate(paragraphs)]})


def _numbered(groups: Iterator[tuple[str, list[dict[str, Any]]]]) -> Iterator[dict[str, Any]]:
    """Yield paragraphs with one question each, and an id and a context of their own."""
    for number, (context, qas) in enumerate(groups):
        qa = qas[number % len(qas)]
        yield {"context": f"{context} {number}", "qas": [qa | {"id": str(number)}]}


def build(windows: int) -> dict[str, Any]:
    """Make a data set's features in this process. Returns: time, windows, and how much the resident memory rose."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.json"
        write_data(file, SIZES[0] // 10)
        tokenizer, lengths = load_tokenizer(resolve(str(OPTIONS["model"]))), Lengths.model_validate(LENGTHS)
        build_features(file, tokenizer, lengths, training=True, cache_dir=Path(folder) / "warm")
        run_module("benchmarks.growth", "--write", file, "--windows", windows)
        before, started = peak_resident_bytes(), time.perf_counter()
        found = build_features(file, tokenizer, lengths, training=True, cache_dir=Path(folder))
        seconds = time.perf_counter() - started
        sizes = {"data_bytes": file.stat().st_size, "risen_bytes": peak_resident_bytes() - before}
        return {"seconds": seconds, "windows": len(found), **sizes}


def speed(windows: int, steps: int) -> dict[str, Any]:
    """Train some steps on a data set. Returns: the speed of its steps, and the peak of resident memory."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder / "data.json", windows)
        cache = {"BIGQA_CACHE": str(folder / "cache")}
        options = OPTIONS | LENGTHS | {"train_file": folder / "data.json", "max_steps": steps, "save_every": 1000}
        # The first run makes the features; its memory is theirs.
        train(folder / "first", options | {"max_steps": 1}, **cache)
        with _Anonymous() as anonymous:
            report = train(folder / "run", options, **cache)
        counted = metrics(folder / "run")[WARM:]
    rate = sum(step["windows"] for step in counted) / sum(step["seconds"] for step in counted)
    sizes = {"peak_bytes": report["peak_memory_bytes"], "anonymous_bytes": anonymous.peak_bytes}
    return {"samples_per_s": rate, "windows": report["windows"]} | sizes


class _Anonymous:
    """Watches the process that trains: its resident memory without the pages of files, which Linux can take back."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Anonymous":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info()
                    self.peak_bytes = max(self.peak_bytes, memory.rss - memory.shared)


def measure(sizes: list[int], turns: int, steps: int) -> dict[str, Any]:
    """Run the sizes in turns."""
    found: dict[str, dict[str, list[Any]]] = {str(size): {"build": [], "train": []} for size in sizes}
    for turn, size in itertools.product(range(turns), sizes):
        built = run_module("benchmarks.growth", "--build", "--windows", size)
        found[str(size)]["build"].append(json.loads(built.splitlines()[-1]))
        found[str(size)]["train"].append(speed(size, steps))
        print(f"{turn + 1}/{turns} {size}: { {part: runs[-1] for part, runs in found[str(size)].items()} }", flush=True)
    return {"sizes": found}


def table(folder: Path) -> str:
    """Return the Markdown table."""
    columns = ("windows", "samples/s (median, least-most)", "of the first", "peak MiB", "without files MiB")
    columns += ("features: s", "windows/s", "MiB more")
    lines = [f"| {' | '.join(columns)} |", f"|{'---:|' * len(columns)}"]
    report = read_report(folder / f"{NAME}.json")
    first = None
    for runs in report["sizes"].values() if report else []:
        speeds = [one["samples_per_s"] for one in runs["train"]]
        first = first or statistics.median(speeds)
        peak = max(one["peak_bytes"] for one in runs["train"]) / 2**20
        anonymous = max(one["anonymous_bytes"] for one in runs["train"]) / 2**20
        built = sorted(runs["build"], key=lambda one: one["seconds"])[len(runs["build"]) // 2]
        cells = [
            f"{built['windows']:,}",
            spread(speeds, ",.0f"),
            f"{statistics.median(speeds) / first:.1%}",
            f"{peak:,.0f}",
            f"{anonymous:,.0f}",
        ]
        cells += [f"{built['seconds']:.2f}", f"{built['windows'] / built['seconds']:,.0f}"]
        cells += [f"{max(one['risen_bytes'] for one in runs['build']) / 2**20:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description="Training speed and memory as the data grow.")
    parser.add_argument("--out", type=Path, default=REPORTS / NAME)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--steps", type=int, default=55, help=f"of a run; the first {WARM} are not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="run nothing; write benchmarks/README.md from the reports")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--windows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_data(options.write, options.windows)
    elif options.build:
        print(json.dumps(build(options.windows)))
    elif options.table:
        put_between(NAME, table(options.out))
    else:
        file = options.out / f"{NAME}.json"
        if read_report(file) is None:
            case = OPTIONS | LENGTHS | {"steps": options.steps, "turns": options.turns}
            write_report(file, case, measure(options.sizes, options.turns, options.steps))
        print(table(options.out))


if __name__ == "__main__":
    main()
