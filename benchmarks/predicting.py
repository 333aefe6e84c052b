"""Prediction of a data set beside a padded loop: speed and answers. Run: `python -m benchmarks.predicting --help`.

In: a vocabulary and KorQuAD's dev file. Out: `runs/predicting/speed.json` and `answers.json`, and a table in README.md.
The model is `enliple-small`, trained briefly on the same questions, so that its answers mean something. It and the
logits of every row stay in `--work`, and are not made again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import parser_of, read_report, run_module, spread, train, write_report
from benchmarks.prediction_rows import ROWS, features, kept_logits
from benchmarks.tables import put_between
from bigqa.files import write_json
from bigqa.run.prediction import kind_and_options
from bigqa.tasks.postprocess import decode
from bigqa.tasks.scoring import evaluate_files
from bigqa.tasks.squad import iter_questions

NAME = "predicting"
MODEL = {"model": "enliple-small", "max_steps": 150, "lr": 3e-4, "dropout": 0, "precision": "bf16", "device": "cpu"}
REFERENCE = "padded loop"


def trained_model(options: argparse.Namespace) -> Path:
    """Return a model folder, made where it is not there yet."""
    run: Path = options.work / "model-run"
    if not (run / "report.json").is_file():
        data = {"tokenizer": options.tokenizer, "train_file": options.data_file, "save_every": 1000}
        train(run, MODEL | data)
    return run / "model"


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Run the rows in turns on the first windows."""
    folder = trained_model(options)
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    for turn in range(options.turns):
        for row in ROWS:
            words = [row, folder, options.data_file, "--windows", options.windows]
            found[row].append(json.loads(run_module("benchmarks.prediction_rows", *words).splitlines()[-1]))
            print(f"{turn + 1}/{options.turns} {row}: {found[row][-1]}", flush=True)
    return {"rows": found}


def measure_answers(options: argparse.Namespace) -> dict[str, Any]:
    """Answer every question in every row. Returns: scores, and the share of answers that are the padded loop's."""
    folder = trained_model(options)
    answers = {}
    for row in ROWS:
        file = options.work / f"{row.replace(' ', '-')}.f32"
        run_module("benchmarks.prediction_rows", row, folder, options.data_file, "--keep", file)
        answers[row] = _answers(folder, options.data_file, file)
        print(f"{row}: {len(answers[row])} answers", flush=True)
    return {"rows": {row: _compared(row, answers, options) for row in ROWS}}


def _answers(folder: Path, data: Path, logits: Path) -> dict[str, str]:
    windows, sizes = features(folder, data)
    questions = iter_questions(data, need_answers=False)
    return decode(questions, windows, kept_logits(logits, sizes), kind_and_options(folder, None)[1])[0]


def _compared(row: str, answers: dict[str, dict[str, str]], options: argparse.Namespace) -> dict[str, Any]:
    file = options.work / "answers.json"
    write_json(file, answers[row])
    score = evaluate_files(options.data_file, file, "korquad1")
    equal = sum(text == answers[REFERENCE][name] for name, text in answers[row].items())
    return {"exact_match": score.exact_match, "f1": score.f1, "equal": equal, "questions": score.total}


def table(folder: Path) -> str:
    """Return the Markdown table of what is there."""
    speed, answers = read_report(folder / "speed.json"), read_report(folder / "answers.json")
    lines = ["| row | windows/s (median, least-most) | of the loop | peak GiB | equal answers | EM | F1 |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for row in ROWS:
        cells = [*_speed_cells(row, speed), *_answer_cells(row, answers)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed_cells(row: str, report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return ["-"] * 3
    speeds = {name: [one["windows_per_s"] for one in runs] for name, runs in report["rows"].items()}
    middle = {name: sorted(values)[len(values) // 2] for name, values in speeds.items()}
    peak = max(one["peak_bytes"] for one in report["rows"][row]) / 2**30
    return [spread(speeds[row]), f"{middle[row] / middle[REFERENCE]:.1f} x", f"{peak:.1f}"]


def _answer_cells(row: str, report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return ["-"] * 3
    found = report["rows"][row]
    share = f"{found['equal'] / found['questions']:.2%} of {found['questions']:,}"
    return [share, f"{found['exact_match']:.2f}", f"{found['f1']:.2f}"]


def main() -> None:
    """Run what is missing, or write the table."""
    parser = parser_of("Prediction beside a padded loop: speed and answers.", NAME, ("speed", "answers"))
    parser.add_argument("--tokenizer", type=Path, help="vocab.txt")
    parser.add_argument("--data-file", type=Path, help="KorQuAD's dev JSON")
    parser.add_argument("--work", type=Path, default=Path("runs") / NAME, help="model and logits")
    parser.add_argument("--windows", type=int, default=192, help="windows of a turn's row; 192: about 40 s of the loop")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.table:
        put_between(NAME, table(options.out))
        return
    case = {"model": MODEL, "data": options.data_file.name}
    for part, measure in (("answers", measure_answers), ("speed", measure_speed)):
        if options.only in (None, part) and read_report(options.out / f"{part}.json") is None:
            more = {"windows": options.windows, "turns": options.turns} if part == "speed" else {}
            write_report(options.out / f"{part}.json", case | more, measure(options))
    print(table(options.out))


if __name__ == "__main__":
    main()
