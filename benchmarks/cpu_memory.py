"""Predicted against measured memory of real training runs on this CPU. Run: `python -m benchmarks.cpu_memory`.

In: nothing. Out: one JSON per case in a folder, and the table on the screen. Each case is `bigqa train` in a process of
its own, on text whose windows are all as long as the case says; measured is the kernel's own high-water mark of
resident memory over two steps. A finished case is not run again.
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

from benchmarks.tables import put_between
from bigqa.files import read_json, write_json
from bigqa.hardware import detect_cpu
from bigqa.runs import versions
from bigqa.sample import FOLDER
from bigqa.strategy import STRATEGIES

MODELS = {
    "enliple-small": ((8, 512), (16, 384)),
    "bert-base": ((4, 512), (8, 384)),
    "enliple-large-v1": ((1, 512), (4, 384)),
}
REPORTS = Path(__file__).parent / "runs" / "cpu-memory"
BERT_BASE = {
    "model_type": "bert",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "vocab_size": 32000,
}
ROWS = {"plain": "cpu", "recompute": "cpu-recompute", "8bit": "cpu-8bit", "8bit-recompute": "cpu-8bit-recompute"}


def cases() -> list[dict[str, Any]]:
    """Return the grid."""
    return [
        {"model": model, "precision": precision, "row": row, "micro_batch": batch, "seq_len": length}
        for model, shapes in MODELS.items()
        for precision in ("fp32", "bf16")
        for row in ROWS
        for batch, length in shapes
    ]


def name_of(case: dict[str, Any]) -> str:
    """Return a case's file name."""
    return "{model}-{precision}-{row}-{micro_batch}x{seq_len}".format(**case)


def measure(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train two steps; return the peak of resident memory and the speed."""
    data, model, plan, run = folder / "data.json", folder / "config.json", folder / "plan.json", folder / "run"
    _write_data(data, windows=6 * case["micro_batch"])
    write_json(model, BERT_BASE)
    strategy = STRATEGIES[ROWS[case["row"]]].model_copy(update={"precision": case["precision"]})
    settings = {"strategy": strategy.model_dump(), "micro_batch": case["micro_batch"], "device": "cpu"}
    write_json(plan, {"schema": 1, "settings": settings})
    command = [sys.executable, "-m", "bigqa.cli", "train", "--plan", str(plan), "--train-file", str(data)]
    command += ["--model", str(model) if case["model"] == "bert-base" else case["model"], "--tokenizer", str(FOLDER)]
    command += ["--seq-len", str(case["seq_len"]), "--max-steps", "2", "--out", str(run)]
    command += ["--global-batch", str(2 * case["micro_batch"]), "--save-every", "1000"]
    done = subprocess.run(command, env=_environment(folder), capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    # A micro-batch is padded to its longest window, so one shorter window in it changes nothing.
    assert min(step["tokens"] / step["windows"] for step in steps) > 0.9 * case["seq_len"]
    return {
        "peak_bytes": steps[-1]["peak_memory_bytes"],
        "samples_per_s": statistics.median(step["samples_per_s"] for step in steps[1:]),
    }


def predict(case: dict[str, Any]) -> int:
    """Return the predicted peak."""
    from bigqa.models import load_config, resolve
    from bigqa.planner import estimator_for

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "config.json"
        write_json(model, BERT_BASE)
        config = load_config(resolve(str(model) if case["model"] == "bert-base" else case["model"]))
    strategy = STRATEGIES[ROWS[case["row"]]].model_copy(update={"precision": case["precision"]})
    found = estimator_for(config).estimate(strategy, case["micro_batch"], case["seq_len"], accumulating=True)
    return found.host_bytes


def _write_data(path: Path, windows: int) -> None:
    """Contexts so long that the first window of each question is full; the questions are cut to one window each."""
    source = json.loads((FOLDER / "train.json").read_text(encoding="utf-8"))["data"]
    text = " ".join(part["context"] for article in source for part in article["paragraphs"])
    qas = [
        {"id": str(number), "question": "누구인가?", "answers": [{"text": text[:2], "answer_start": 0}]}
        for number in range(windows)
    ]
    write_json(path, {"data": [{"title": "", "paragraphs": [{"context": text[:20000], "qas": qas}]}]})


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"BIGQA_CACHE": str(folder), "HF_HUB_OFFLINE": "1", "BIGQA_HEAP": "tight"}


def compare(folder: Path, only: str = "") -> list[dict[str, Any]]:
    """Return each finished case of a folder with its prediction, and the error of the prediction."""
    rows = []
    for case in cases():
        file = folder / f"{name_of(case)}.json"
        if only not in name_of(case) or not file.is_file():
            continue
        measured = read_json(file, "the report")["measured"]
        row = case | {
            "name": name_of(case),
            "measured": measured.get("peak_bytes"),
            "error_text": measured.get("error"),
        }
        if row["measured"]:
            row["predicted"] = predict(case)
            row["error"] = row["predicted"] / row["measured"] - 1
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the grade in one line."""
    errors = [row["error"] for row in rows if "error" in row]
    sizes = [abs(error) for error in errors]
    return (
        f"{len(errors)} of {len(cases())} runs: median error {statistics.median(sizes):.1%}, worst {max(sizes):.1%}, "
        f"shortest prediction {min(errors):+.1%}"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| model | precision | strategy | batch x length | measured MiB | predicted MiB | error |"]
    lines.append("|---|---|---|---|---:|---:|---:|")
    for row in rows:
        shape = f"{row['micro_batch']} x {row['seq_len']}"
        sizes = f"{row['measured'] / 2**20:,.0f} | {row['predicted'] / 2**20:,.0f} | {row['error']:+.1%}"
        lines.append(f"| {row['model']} | {row['precision']} | {row['row']} | {shape} | {sizes} |")
    return "\n".join([*lines, "", summary(rows)])


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description="Predicted against measured memory on this CPU.")
    parser.add_argument("--out", type=Path, default=REPORTS)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--table", action="store_true", help="run nothing; write benchmarks/README.md from the reports")
    options = parser.parse_args()
    if options.table:
        put_between("cpu-memory", table(compare(options.out)))
        return
    for case in cases():
        file = options.out / f"{name_of(case)}.json"
        if options.only in name_of(case) and not file.is_file():
            with tempfile.TemporaryDirectory() as folder:
                found = measure(case, Path(folder))
            machine = {"cpu": detect_cpu().model_dump(), "versions": versions()}
            write_json(file, {"case": case, "measured": found, **machine})
            print(name_of(case), found, flush=True)
    print(table(compare(options.out, options.only)))


if __name__ == "__main__":
    main()
