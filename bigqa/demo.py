"""The main job on the embedded sample, offline: plan, train, predict, score, report. Run: `bigqa demo`, `make demo`.

In: a folder. Out: in it a plan, run folders and predictions, and a table of the scores before and after training. Every
step is the command that a person would type, and is printed as such. Exit 1 where nothing was learned.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bigqa import interrupts
from bigqa.console import command, console, show
from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json
from bigqa.lock import check_free
from bigqa.sample import FOLDER
from bigqa.show.scores import scores_table
from bigqa.units import format_seconds

LEARNED_EM = 70.0
"""What the held-out questions must reach; before training it is at most 10."""
MADE = {"plan.json", "plan.accelerate.yaml", "plan.deepspeed.json", "untrained", "run"}
"""What a demo leaves in its folder."""


def run(
    out: Annotated[Path, typer.Option(help="A new folder, or that of an earlier demo, which goes.")] = Path("demo"),
) -> None:
    """Plan, train, predict and score on the embedded sample, offline, in some minutes."""
    started = time.perf_counter()
    clear(out)
    train, dev = FOLDER / "train.json", FOLDER / "dev.json"
    _bigqa("probe", "tiny", "--train-file", str(train), "--out", str(out / "plan.json"))
    before = _train_and_score(out / "untrained", train, dev, "--max-steps", "1", "--lr", "1e-12")
    after = _train_and_score(out / "run", train, dev)
    show(scores_table("held-out questions", {"before fine-tuning": before, "after": after}))
    console.print(f"{format_seconds(time.perf_counter() - started)} in all; the run explains itself in {out}/run")
    if after["exact_match"] < LEARNED_EM:
        raise BigqaError(f"the demo reached EM {after['exact_match']:.1f}, below {LEARNED_EM:.0f}")


def clear(out: Path) -> None:
    """Remove an earlier demo, and nothing else: the folder is where a person happens to be."""
    if out.is_file():
        raise UsageError(f"{out} is a file: name another folder with --out")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there and (there - MADE or "plan.json" not in there):
        raise UsageError(f"{out} is there and is not an earlier demo's: move it away, or name another with --out")
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
    scores: dict[str, Any] = read_json(folder / "scores.json", "the scores")
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
        raise BigqaError(f"`bigqa {words[0]}` failed with exit code {started.returncode}")
    return said or ""


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    command(app)
