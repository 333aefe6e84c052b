"""bigqa beside the published loop and Hugging Face's Trainer, alternately. Run: `python -m benchmarks.compare --help`.

In: a vocabulary and a KorQuAD file. Out: one JSON per case in `runs/compare/`, and a table in README.md. Each row is a
process of its own; rows take turns, so that what else the machine does falls on all of them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import REPORTS, machine, speeds, spread
from benchmarks.tables import put_between
from bigqa.files import read_json, write_json
from bigqa.models.sources import load_config, resolve
from bigqa.speed.calibration import measure_cpu
from bigqa.speed.card import LAYER_SHARE, measure_gpu

NAME = "compare"
CASES: dict[str, dict[str, Any]] = {
    "small-512": {"model": "enliple-small", "seq_len": 512, "doc_stride": 128, "batch": 16, "steps": (3, 5, 16)},
    "small-512-no-attention-dropout": {
        "model": "enliple-small", "seq_len": 512, "doc_stride": 128, "batch": 16, "steps": (3, 10, 16),
        "attention_dropout": 0.0,
    },
    "large-384-batch-1": {
        "model": "enliple-large-v1", "seq_len": 384, "doc_stride": 128, "batch": 1, "steps": (6, 8, 12),
    },
    "large-384-batch-16": {
        "model": "enliple-large-v1", "seq_len": 384, "doc_stride": 128, "batch": 16, "steps": (2, 2, 3),
        "micro_batch": 8,
    },
    "gpu-small-512": {
        "model": "enliple-small", "seq_len": 512, "doc_stride": 128, "batch": 16, "steps": (2, 2, 2), "device": "cuda",
    },
    "gpu-large-384": {
        "model": "enliple-large-v1", "seq_len": 384, "doc_stride": 128, "batch": 64, "steps": (12, 20, 30),
        "device": "cuda",
    },
    "gpu-large-512": {
        "model": "enliple-large-v1", "seq_len": 512, "doc_stride": 128, "batch": 48, "steps": (12, 20, 30),
        "device": "cuda",
    },
}  # fmt: skip
ROWS = ("published loop", "Trainer", "bigqa")
"""A case without attention dropout is a change of recipe: of the rows, the published loop alone keeps to its own."""


def run_row(row: str, case: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Run one row once; return its figures."""
    steps = case["steps"][ROWS.index(row)]
    data = ["--tokenizer", str(options.tokenizer), "--train-file", str(options.train_file)]
    if row == "bigqa":
        return _bigqa(case, steps, data)
    module = {"published loop": "plain", "Trainer": "trainer"}[row]
    words = ["--model", case["model"], "--seq-len", str(case["seq_len"]), "--doc-stride", str(case["doc_stride"])]
    words += ["--batch", str(case["batch"]), "--steps", str(steps), "--device", device_of(case)]
    words += ["--micro-batch", str(case.get("micro_batch", case["batch"]))]
    if "attention_dropout" in case and row != ROWS[0]:
        words += ["--attention-dropout", str(case["attention_dropout"])]
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.baselines.{module}", *words, *data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": _last_words(done)}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def device_of(case: dict[str, Any]) -> str:
    """Return what a case runs on."""
    return str(case.get("device", "cpu"))


def matrix_rate(device: str) -> float:
    """Measure what bf16 products reach, on a GPU large ones. FLOP/s."""
    if device == "cpu":
        return measure_cpu(1.0).low_flops_per_s
    return measure_gpu(torch.device("cuda")).low_flops_per_s / LAYER_SHARE


def _bigqa(case: dict[str, Any], steps: int, data: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "bigqa.cli", "train", "--model", _model(case, Path(folder)), "--out", str(out)]
        command += ["--seq-len", str(case["seq_len"]), "--doc-stride", str(case["doc_stride"]), *data]
        command += ["--global-batch", str(case["batch"]), "--micro-batch", str(case.get("micro_batch", case["batch"]))]
        command += [
            "--device",
            device_of(case),
            "--precision",
            "bf16",
            "--max-steps",
            str(steps),
            "--save-every",
            "1000",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"error": _last_words(done)}
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps_done = [json.loads(line) for line in lines]
    columns = ([step[name] for step in steps_done] for name in ("seconds", "windows", "tokens"))
    return speeds(*columns) | {"peak_bytes": steps_done[-1]["peak_memory_bytes"]}


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    """Return why a row ended; one that the kernel killed, for memory, says nothing."""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _model(case: dict[str, Any], folder: Path) -> str:
    if "attention_dropout" not in case:
        return str(case["model"])
    config = load_config(resolve(case["model"]))
    config.attention_probs_dropout_prob = case["attention_dropout"]
    write_json(folder / "config.json", config.to_dict())
    return str(folder / "config.json")


def flops_per_token(model: str, seq_len: int) -> float:
    """Return FLOPs of training on one token: products with weights, and attention over a window of `seq_len`."""
    config = load_config(resolve(model))
    hidden, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    return float(3 * (2 * weights + layers * 4 * seq_len * hidden))


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run the rows of a case in turns; one that failed once is not run again."""
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    failed: dict[str, str] = {}
    for turn in range(options.turns):
        for row in (row for row in ROWS if row not in failed):
            result = run_row(row, CASES[name], options)
            print(f"{name} {turn + 1}/{options.turns} {row}: {result}", flush=True)
            if "error" in result:
                failed[row] = result["error"]
            else:
                found[row].append(result)
    case = CASES[name] | {"name": name}
    rate = matrix_rate(device_of(case))
    return {"case": case, "rows": found, "failed": failed, "matrix_flops_per_s": rate, **machine()}


def table(folder: Path) -> str:
    """Return the Markdown table of all reports of a folder."""
    head = (
        "| case | row | samples/s (median, least-most) | of the loop | real tokens/s | peak GiB | of the matrix rate |"
    )
    lines = [head, "|---|---|---:|---:|---:|---:|---:|"]
    for name in CASES:
        file = folder / f"{name}.json"
        if not file.is_file():
            continue
        report = read_json(file, "the report")
        loop = _median(report["rows"][ROWS[0]], "samples_per_s")
        for row in ROWS:
            lines.append(f"| {name} | {row} | {' | '.join(_cells(report, row, loop))} |")
    return "\n".join(lines)


def _cells(report: dict[str, Any], row: str, loop: float | None) -> list[str]:
    runs = report["rows"][row]
    samples, tokens = (_median(runs, kind) for kind in ("samples_per_s", "tokens_per_s"))
    if samples is None or tokens is None:
        return [f"failed: {report['failed'][row]}", *["-"] * 4]
    flops = flops_per_token(report["case"]["model"], round(tokens / samples))
    return [
        spread([one["samples_per_s"] for one in runs]),
        f"{samples / loop:.1f} x" if loop else "-",
        f"{tokens:,.0f}",
        f"{max(one['peak_bytes'] for one in runs) / 2**30:.1f}",
        f"{tokens * flops / report['matrix_flops_per_s']:.0%}",
    ]


def _median(runs: list[dict[str, Any]], kind: str) -> float | None:
    return statistics.median(one[kind] for one in runs) if runs else None


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description="bigqa beside the published loop and Hugging Face's Trainer.")
    parser.add_argument("--tokenizer", type=Path, help="vocab.txt")
    parser.add_argument("--train-file", type=Path, help="KorQuAD JSON")
    parser.add_argument("--out", type=Path, default=REPORTS / NAME)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="run nothing; write benchmarks/README.md from the reports")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in CASES:
        other = device_of(CASES[name]) != options.device
        if options.table or other or options.only not in name or (options.out / f"{name}.json").is_file():
            continue
        write_json(options.out / f"{name}.json", measure(name, options))
    put_between(NAME, table(options.out)) if options.table else print(table(options.out))


if __name__ == "__main__":
    main()
