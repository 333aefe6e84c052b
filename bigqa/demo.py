"""A task's job on its embedded sample, offline: plan, train, predict, score, report. Run: `bigqa demo`, `make demo`.

In: a folder, a task. Out: in the folder a plan, run folders and predictions; a table of the scores before and after
training, or of plain methods and the trained model. Every step is the command that a person would type, and is printed
as such. Exit 1 where nothing was learned.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bigqa import interrupts
from bigqa.console import as_program, command, console, show
from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json
from bigqa.language import tr
from bigqa.lock import check_free
from bigqa.sample import FOLDER
from bigqa.show.scores import figures_table, scores_table
from bigqa.tasks.registry import DEFAULT
from bigqa.units import format_seconds

LEARNED_EM = 70.0
"""What the held-out questions must reach; before training it is at most 10."""
MADE = {"plan.json", "plan.accelerate.yaml", "plan.deepspeed.json", "untrained", "run"}
"""What a demo leaves in its folder."""


@dataclass(frozen=True)
class Sample:
    """A sample of another task: a folder with a training and a dev file, a model's shape and its vocabulary."""

    folder: Path
    ending: str
    words: str
    """Of `bigqa train`: its recipe."""
    answered_by: str
    """The command that writes what the model answers to the dev file."""
    shown: tuple[str, ...]
    learned: tuple[str, float]
    """A score, and how much of the best plain method's it must reach, or come down to."""


SAMPLES = {
    "classify": Sample(
        FOLDER / "comments", "tsv", "--lr 1e-3 --epochs 3", "predict", ("accuracy", "macro_f1", "total"),
        ("macro_f1", 1.2),
    ),
    "lm": Sample(
        FOLDER / "chats", "jsonl", "--lr 2e-3 --epochs 3", "generate", ("loss", "perplexity", "right", "tokens"),
        ("perplexity", 0.1),
    ),
}  # fmt: skip


def run(
    out: Annotated[Path, typer.Option(help="A new folder, or that of an earlier demo, which goes.")] = Path("demo"),
    task: Annotated[str, typer.Option(help="qa, classify or lm.")] = DEFAULT,
) -> None:
    """Plan, train, predict and score on an embedded sample, offline, in some minutes."""
    started = time.perf_counter()
    if task not in (DEFAULT, *SAMPLES):
        raise UsageError(
            tr(
                "there is no sample of --task {task}; choose one of {default}, {samples}",
                task=task,
                default=DEFAULT,
                samples=", ".join(SAMPLES),
            )
        )
    clear(out)
    if task in SAMPLES:
        _other(out, task, SAMPLES[task])
    else:
        _questions(out)
    console.print(
        tr(
            "{perf_counter} in all; the run explains itself in {out}/run",
            perf_counter=format_seconds(time.perf_counter() - started),
            out=out,
        )
    )


def _questions(out: Path) -> None:
    train, dev = FOLDER / "train.json", FOLDER / "dev.json"
    _bigqa("probe", "tiny", "--train-file", str(train), "--out", str(out / "plan.json"))
    before = _train_and_score(out / "untrained", train, dev, "--max-steps", "1", "--lr", "1e-12")
    after = _train_and_score(out / "run", train, dev)
    show(scores_table(tr("held-out questions"), {tr("before fine-tuning"): before, tr("after"): after}))
    if after["exact_match"] < LEARNED_EM:
        raise BigqaError(
            tr(
                "the demo reached EM {reached:.1f}, below {least:.0f}",
                reached=after["exact_match"],
                least=LEARNED_EM,
            )
        )


def _other(out: Path, task: str, sample: Sample) -> None:
    """Train on a sample, and hold the scores against those of what needs no model."""
    model, train, dev = (
        str(sample.folder / name) for name in ("config.json", f"train.{sample.ending}", f"dev.{sample.ending}")
    )
    size = ("--seq-len", "128", "--global-batch", "16")
    _bigqa("probe", model, "--task", task, "--train-file", train, *size, "--out", str(out / "plan.json"))
    words = ("--train-file", train, "--dev-file", dev, "--eval-every", "0", *sample.words.split())
    _bigqa("train", "--plan", str(out / "plan.json"), *words, "--out", str(out / "run"))
    answers = out / "run" / "answers.jsonl"
    _bigqa(sample.answered_by, str(out / "run" / "model"), dev, str(answers))
    found = read_json(out / "run" / "report.json", tr("the run's report"))["scores"]
    rows = _plain(task, sample, Path(train), Path(dev)) | {tr("after fine-tuning"): found | _right(answers)}
    show(figures_table(tr("held-out texts"), rows, sample.shown))
    name, share = sample.learned
    plain = [row[name] for label, row in rows.items() if label != tr("after fine-tuning")]
    reached = found[name] <= share * min(plain) if share < 1 else found[name] >= share * max(plain)
    if not reached:
        raise BigqaError(
            tr(
                "the demo reached {name} {found:.2f}, and plain methods {plain:.2f}",
                name=name,
                found=found[name],
                plain=max(plain),
            )
        )


def _plain(task: str, sample: Sample, train: Path, dev: Path) -> dict[str, dict[str, Any]]:
    from bigqa.models.sources import load_tokenizer, resolve
    from bigqa.tasks.registry import kind_of

    kind, tokenizer = kind_of(task), load_tokenizer(resolve(str(sample.folder / "config.json")))
    return kind.plain_scores(train, dev, tokenizer, kind.options({"seq_len": 128}))


def _right(answers: Path) -> dict[str, float]:
    """Return the share of conversations that were answered to the letter, in per cent; nothing of other answers."""
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    if "completion" not in rows[0]:
        return {}
    return {"right": 100 * sum(row["completion"] == row["messages"][-1]["content"] for row in rows) / len(rows)}


def clear(out: Path) -> None:
    """Remove an earlier demo, and nothing else: the folder is where a person happens to be."""
    if out.is_file():
        raise UsageError(tr("{out} is a file: name another folder with --out", out=out))
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there and (there - MADE or "plan.json" not in there):
        raise UsageError(
            tr("{out} is there and is not an earlier demo's: move it away, or name another with --out", out=out)
        )
    for name in ("untrained", "run"):
        check_free(out / name)
    shutil.rmtree(out, ignore_errors=True)


def _train_and_score(folder: Path, train: Path, dev: Path, *more: str) -> dict[str, Any]:
    plan = str(folder.parent / "plan.json")
    _bigqa("train", "--plan", plan, "--train-file", str(train), "--out", str(folder), *more)
    _bigqa("predict", str(folder / "model"), str(dev), str(folder / "predictions.json"))
    _bigqa("evaluate", str(dev), str(folder / "predictions.json"))
    scored = _bigqa("evaluate", str(dev), str(folder / "predictions.json"), "--json", quiet=True)
    (folder / "scores.json").write_text(scored, encoding="utf-8")
    scores: dict[str, Any] = read_json(folder / "scores.json", tr("the scores"))
    return scores


def _bigqa(*words: str, quiet: bool = False) -> str:
    if not quiet:
        console.print(f"\n$ bigqa {' '.join(words)}", style="bold", markup=False, highlight=False, soft_wrap=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with interrupts.held_back():  # and out of reach of a terminal: what this process is told it hands on
        started = subprocess.Popen(
            [sys.executable, "-m", "bigqa.cli", *words],
            env=environment,
            stdout=subprocess.PIPE if quiet else None,
            text=True,
            start_new_session=True,
        )
    interrupts.at_last.append(started.kill)
    with interrupts.taken_by(lambda _: started.terminate()):
        said, _ = started.communicate()
    interrupts.at_last.remove(started.kill)
    asked = interrupts.first()
    if asked is not None:
        raise SystemExit(interrupts.code_of(asked))
    if started.returncode:
        raise BigqaError(
            tr("`bigqa {words}` failed with exit code {returncode}", words=words[0], returncode=started.returncode)
        )
    return said or ""


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    as_program(lambda: command(app))
