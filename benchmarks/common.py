"""What the benchmarks share: options, reports with their machine, modules in their own processes, figures as text."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bigqa.files import read_json, write_json
from bigqa.machine.hardware import detect_cpu, host_memory
from bigqa.versions import commit, versions

REPORTS = Path(__file__).parent / "runs"
SEEDS = (42, 43, 44)
WARM_UP_S = 15.0
"""Of training, not counted: a process meets sizes for the first time, and memory that nobody has used yet."""


def parser_of(description: str, name: str, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Return the options of a benchmark whose reports lie in a folder of its name. `parts`: those that run alone."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=REPORTS / name)
    parser.add_argument("--only", choices=list(parts))
    parser.add_argument("--table", action="store_true", help="run nothing; write benchmarks/README.md from the reports")
    return parser


def write_report(file: Path, case: dict[str, Any], found: dict[str, Any]) -> None:
    """Write what was found for a case, with what it was found on."""
    write_json(file, {"case": case, **found, **machine()})


def machine() -> dict[str, Any]:
    """Return what figures hang on: processor, memory, versions, commit."""
    ram_bytes, _ = host_memory()
    return {"cpu": detect_cpu().model_dump(), "ram_bytes": ram_bytes, "versions": versions(), "commit": commit()}


def read_report(file: Path) -> dict[str, Any] | None:
    """Return a finished case's report."""
    return dict(read_json(file, "the report")) if file.is_file() else None


def run_module(module: str, *words: object, **variables: str) -> str:
    """Run a module in a process of its own. Returns: what it printed. Raises: RuntimeError with its last words."""
    command = [sys.executable, "-W", "ignore", "-m", module, *(str(word) for word in words)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def train(out: Path, options: dict[str, Any], **variables: str) -> dict[str, Any]:
    """Run `bigqa train`. Returns: the run's report."""
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    run_module("bigqa.cli", "train", "--out", out, *words, **variables)
    return dict(read_json(out / "report.json", "the run's report"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return a run's steps."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def speeds(seconds: Sequence[float], windows: Sequence[int], tokens: Sequence[int]) -> dict[str, float]:
    """Return the speed of the steps after the warm-up; the first warms up in any case, the last never does."""
    first = 1
    while first < len(seconds) - 1 and sum(seconds[:first]) < WARM_UP_S:
        first += 1
    per_step = [count / second for count, second in zip(windows[first:], seconds[first:], strict=True)]
    return {
        "samples_per_s": statistics.median(per_step),
        "tokens_per_s": sum(tokens[first:]) / sum(seconds[first:]),
    }


def later_speed(clock: Sequence[float], processor: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    """Return the real tokens of a second, by the clock and by the processor, after the first quarter of the steps.

    Where other work takes the machine, what the processor was busy with is all that can be compared.
    """
    first = len(clock) // 4
    done = sum(tokens[first:])
    rates = {"tokens_per_s": done / sum(clock[first:]), "tokens_per_processor_s": done / sum(processor[first:])}
    return rates | {"steps": len(clock) - first}


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Return the median, with the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def take_first_questions(source: Path, target: Path, count: int) -> None:
    """Write a data set with the first `count` questions of another, every paragraph kept."""
    data = dict(read_json(source, "data file"))
    left = count
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = paragraph["qas"][: max(0, left)]
            left -= len(paragraph["qas"])
    write_json(target, data)
