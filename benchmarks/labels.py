"""What classification learns beside methods without a model. Run: `python -m benchmarks.labels --help`.

In: comments with labels, and questions of SQuAD's form with the title of their article. Out: one JSON per case in
`runs/labels/`, and a table in README.md. No Korean pretrained weights lie beside this project: on Korean comments the
small model begins with random ones. The English model is a pretrained one that a package carries.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import parser_of, read_report, train, write_report
from benchmarks.tables import put_between
from bigqa.files import read_json, write_text
from bigqa.tasks.registry import kind_of

NAME = "labels"
HELD_OUT = 5
"""Every such question of an article is held out."""
CASES: dict[str, dict[str, Any]] = {
    "comments-random": {
        "model": "enliple-small", "label": "hate", "seq_len": 128, "epochs": 2, "lr": 5e-4, "global_batch": 32,
    },
    "questions-pretrained": {"label": "title", "seq_len": 64, "epochs": 6, "lr": 3e-4, "global_batch": 32},
}  # fmt: skip
"""Three kinds of comments; and of which article a question is asked, 48 of them, 20 questions of each in training."""
SHOWN = ("accuracy", "macro_f1")


def files_of(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what a case is trained and scored on, and with which model."""
    if name == "comments-random":
        data = {"train_file": options.comments / "train.tsv", "dev_file": options.comments / "dev.tsv"}
        return data | {"tokenizer": options.tokenizer}
    write_questions(options.questions, folder)
    return {"train_file": folder / "train.tsv", "dev_file": folder / "dev.tsv", "model": options.pretrained}


def write_questions(source: Path, folder: Path) -> None:
    """Write questions with their article's title as tables: every fifth of an article to score on."""
    rows: dict[str, list[str]] = {"train": ["text\ttitle"], "dev": ["text\ttitle"]}
    for article in read_json(source, "data file")["data"]:
        asked = [qa["question"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
        for number, text in enumerate(asked):
            rows["dev" if number % HELD_OUT == 0 else "train"].append(f"{' '.join(text.split())}\t{article['title']}")
    for name, lines in rows.items():
        write_text(folder / f"{name}.tsv", "\n".join(lines) + "\n")


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a case and score what needs no model on the same files. Returns: scores by row, steps, seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        asked = CASES[name] | files_of(name, options, folder)
        kind = kind_of("classify")
        plain = kind.plain_scores(
            Path(asked["train_file"]), Path(asked["dev_file"]), None, kind.options({"label": asked["label"]})
        )
        words = asked | {"task": "classify", "device": "cpu", "eval_every": 0, "save_every": 10000, "seed": 42}
        report = train(folder / "run", words)
    rows = {label: {key: scores[key] for key in (*SHOWN, "total")} for label, scores in plain.items()}
    rows["bigqa"] = {key: report["scores"][key] for key in (*SHOWN, "total")}
    known = ("steps", "seconds", "samples_per_s", "peak_memory_bytes", "windows", "evaluations")
    return {"rows": rows} | {key: report[key] for key in known}


def table(folder: Path) -> str:
    """Return the Markdown table of all reports."""
    lines = ["| case | trained on | scored on | row | accuracy | macro F1 |", "|---|---:|---:|---|---:|---:|"]
    for name in CASES:
        report = read_report(folder / f"{name}.json")
        for row, scores in report["rows"].items() if report else ():
            figures = " | ".join(f"{scores[key]:.2f}" for key in SHOWN)
            lines.append(f"| {name} | {report['windows']:,} | {scores['total']} | {row} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or write the table."""
    parser = parser_of("Labels learned, beside a bag of words.", NAME, CASES)
    parser.add_argument("--comments", type=Path, help="folder of train.tsv and dev.tsv with comments and labels")
    parser.add_argument("--tokenizer", type=Path, help="vocab.txt for the comments")
    parser.add_argument("--questions", type=Path, help="JSON of SQuAD's form, in English")
    parser.add_argument("--pretrained", type=Path, help="folder of a pretrained English encoder")
    options = parser.parse_args()
    if options.table:
        put_between(NAME, table(options.out))
        return
    for name in CASES:
        file = options.out / f"{name}.json"
        if options.only in (None, name) and not file.is_file():
            write_report(file, CASES[name] | {"name": name}, measure(name, options))
    print(table(options.out))


if __name__ == "__main__":
    main()
