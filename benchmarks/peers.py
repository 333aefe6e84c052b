"""bigqa beside transformers' Trainer and TRL on the same files, in turns. Run: `python -m benchmarks.peers --help`.

In: comments with labels and the titles of the news that they are on, a vocabulary. Out: one JSON per case in
`runs/peers/`, and a table in README.md. Each row is a process of its own, as in `benchmarks.compare`; speeds are of
real tokens, since TRL packs other conversations into a step than bigqa does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import later_speed, machine, parser_of, read_report, spread
from benchmarks.tables import put_between
from bigqa.files import write_json, write_text
from bigqa.models.sources import load_config, load_model, load_tokenizer, resolve
from bigqa.tasks.heads import CLASSES, WORDS
from bigqa.tasks.tables import read_table

NAME = "peers"
CASES: dict[str, dict[str, Any]] = {
    "comments": {
        "task": "classify", "peer": "Trainer", "seq_len": 128, "batch": 32, "peer_batch": 32, "steps": (24, 48),
    },
    "conversations": {"task": "lm", "peer": "TRL", "seq_len": 512, "batch": 48, "peer_batch": 4, "steps": (8, 10)},
}  # fmt: skip
"""Steps of the peer and of bigqa; both take some 2,000 tokens of conversations in a step."""
SHOWN = "tokens_per_processor_s"
"""Other work may take the machine meanwhile: what the clock says of two runs would be compared with that."""
LABELS = ("hate", "none", "offensive")
SMALL_LM = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
"""A Llama of 23 million parameters, more than half of them words."""


def prepare(case: dict[str, Any], options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Write a case's model, with random weights, and its data. Returns: both."""
    source = resolve("enliple-small", tokenizer=str(options.tokenizer))
    tokenizer, model, data = load_tokenizer(source), folder / "model", folder / "data.jsonl"
    tokenizer.save_pretrained(model)
    titles = (options.comments / "train.news_title.txt").read_text("utf-8").splitlines()
    rows = [row for row, _ in read_table(options.comments / "train.tsv")]
    if case["task"] == "classify":
        config, head = load_config(source, CLASSES), CLASSES
        numbers = {name: number for number, name in enumerate(LABELS)}
        config.update({"id2label": dict(enumerate(LABELS)), "label2id": numbers})
        config.update({"problem_type": "single_label_classification"})
        values = [{"text": row["comments"], "label": row["hate"]} for row in rows]
    else:
        from transformers import LlamaConfig

        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id, "bos_token_id": None}
        config, head = LlamaConfig(vocab_size=len(tokenizer), **SMALL_LM, **special), WORDS
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.save_pretrained(model)
        values = [
            {"prompt": f"{title}\n", "completion": row["comments"]} for title, row in zip(titles, rows, strict=True)
        ]
    load_model(source, config, head=head, vocabulary_size=len(tokenizer)).save_pretrained(model)
    write_text(data, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in values))
    return model, data


def run_peer(case: dict[str, Any], model: Path, data: Path) -> dict[str, Any]:
    """Run the peer once; return its figures."""
    words: list[Any] = ["--task", case["task"], "--model", model, "--train-file", data, "--seq-len", case["seq_len"]]
    words += ["--batch", case["peer_batch"], "--steps", case["steps"][0]]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.baselines.peers", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def run_bigqa(case: dict[str, Any], model: Path, data: Path) -> dict[str, Any]:
    """Run bigqa once; return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words: list[Any] = ["--task", case["task"], "--model", model, "--train-file", data, "--out", out]
        words += ["--seq-len", case["seq_len"], "--global-batch", case["batch"], "--micro-batch", case["batch"]]
        words += ["--max-steps", case["steps"][1], "--precision", "bf16", "--device", "cpu", "--save-every", 10000]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.baselines.ours", *map(str, words)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    columns = [[step[name] for step in steps] for name in ("seconds", "processor_s", "tokens")]
    return later_speed(*columns) | {"peak_bytes": steps[-1]["peak_memory_bytes"]}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run both rows of a case in turns."""
    case = CASES[name]
    found: dict[str, list[dict[str, Any]]] = {case["peer"]: [], "bigqa": []}
    with tempfile.TemporaryDirectory() as folder:
        model, data = prepare(case, options, Path(folder))
        for turn in range(options.turns):
            for row, run in ((case["peer"], run_peer), ("bigqa", run_bigqa)):
                found[row].append(run(case, model, data))
                print(f"{name} {turn + 1}/{options.turns} {row}: {found[row][-1]}", flush=True)
    others = {"load_average": os.getloadavg()[0], "threads": options.threads}
    return {"case": case | {"name": name}, "rows": found, **others, **machine()}


def table(folder: Path) -> str:
    """Return the Markdown table of all reports."""
    lines = ["| case | row | real tokens a processor second (median, least-most) | of the peer | peak GiB |"]
    lines.append("|---|---|---:|---:|---:|")
    for name, case in CASES.items():
        report = read_report(folder / f"{name}.json")
        for row, runs in report["rows"].items() if report else ():
            peers = report["rows"][case["peer"]] if report else []
            speed = [one[SHOWN] for one in runs]
            ratios = [one / other[SHOWN] for one, other in zip(speed, peers, strict=True)]
            peak = max(one["peak_bytes"] for one in runs) / 2**30
            lines.append(f"| {name} | {row} | {spread(speed, ',.0f')} | {spread(ratios, '.2f')} | {peak:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or write the table."""
    parser = parser_of("bigqa beside transformers' Trainer and TRL.", NAME, CASES)
    parser.add_argument("--comments", type=Path, help="folder of train.tsv and train.news_title.txt")
    parser.add_argument("--tokenizer", type=Path, help="vocab.txt")
    parser.add_argument("--threads", type=int, default=1, help="of each row; several spin where others take the cores")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.table:
        put_between(NAME, table(options.out))
        return
    threads = str(options.threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "BIGQA_THREADS"), threads)
    for name in CASES:
        file = options.out / f"{name}.json"
        if options.only in (None, name) and not file.is_file():
            write_json(file, measure(name, options))
    print(table(options.out))


if __name__ == "__main__":
    main()
