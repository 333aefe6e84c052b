"""What the main job learns with the fast path, over three seeds. Run: `python -m benchmarks.quality --help`.

In: a vocabulary and KorQuAD's dev file. Out: one JSON per case and seed in `runs/quality/`, and a table in README.md.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import SEEDS, parser_of, read_report, spread, take_first_questions, train, write_report
from benchmarks.tables import put_between
from bigqa.sample import FOLDER

NAME = "quality"
QUESTIONS = 32
CASES: dict[str, dict[str, Any]] = {
    "sample": {"model": "tiny", "device": "cpu"},
    "by-heart": {
        "model": "enliple-small", "device": "cpu", "seq_len": 384, "epochs": 100, "lr": 3e-4, "dropout": 0,
    },
}  # fmt: skip
"""The sample's own recipe, scored on held-out questions; and KorQuAD's first 32 questions by heart."""


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a case with a seed. Returns: its scores, steps and time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = {"train_file": FOLDER / "train.json", "dev_file": FOLDER / "dev.json"}
        if name == "by-heart":
            first = folder / "first.json"
            take_first_questions(options.data_file, first, QUESTIONS)
            files = {"train_file": first, "dev_file": first, "tokenizer": options.tokenizer}
        report = train(folder / "run", CASES[name] | files | {"seed": seed, "save_every": 10000})
    strategy = report["settings"]["strategy"]
    return {key: report[key] for key in ("scores", "steps", "seconds", "last_loss")} | {"strategy": strategy}


def table(folder: Path) -> str:
    """Return the Markdown table of all reports."""
    lines = ["| case | questions | EM (median, least-most) | F1 (median, least-most) | EM / F1 per seed |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name in CASES:
        reports = {seed: read_report(folder / f"{name}-{seed}.json") for seed in SEEDS}
        found = {seed: report["scores"] for seed, report in reports.items() if report is not None}
        if found:
            medians = [spread([one[kind] for one in found.values()], ".2f") for kind in ("exact_match", "f1")]
            each = " · ".join(f"{seed}: {one['exact_match']:.2f} / {one['f1']:.2f}" for seed, one in found.items())
            total = next(iter(found.values()))["total"]
            lines.append(f"| {name} | {total} | {' | '.join(medians)} | {each} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or write the table."""
    parser = parser_of("Scores of the main job over three seeds.", NAME, CASES)
    parser.add_argument("--tokenizer", type=Path, help="vocab.txt")
    parser.add_argument("--data-file", type=Path, help="KorQuAD's dev JSON")
    options = parser.parse_args()
    if options.table:
        put_between(NAME, table(options.out))
        return
    for name in CASES:
        for seed in SEEDS:
            file = options.out / f"{name}-{seed}.json"
            if options.only in (None, name) and not file.is_file():
                write_report(file, CASES[name] | {"name": name, "seed": seed}, measure(name, seed, options))
                print(file.stem, read_report(file)["scores"], flush=True)  # type: ignore[index]
    print(table(options.out))


if __name__ == "__main__":
    main()
