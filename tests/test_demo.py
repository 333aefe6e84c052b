"""`make demo` as a person runs it, from a folder that is no checkout: `make slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import LIMIT_S

from bigqa.demo import LEARNED_EM, SAMPLES

ROOT = Path(__file__).parents[1]


def demo(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "BIGQA_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "bigqa.demo", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(SAMPLES))
def test_the_other_demos_learn_what_plain_methods_do_not(tmp_path: Path, task: str) -> None:
    done = demo(tmp_path, "--task", task, "--out", "out")
    scores = json.loads((tmp_path / "out" / "run" / "report.json").read_text("utf-8"))["scores"]
    reached = {"classify": scores.get("accuracy", 0) >= 90, "lm": scores.get("perplexity", 99) < 1.2}
    assert reached[task], scores
    commands = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ bigqa ")]
    assert commands == ["probe", "train", SAMPLES[task].answered_by]


@pytest.mark.slow
def test_the_demo_learns_and_explains_itself(tmp_path: Path) -> None:
    done = demo(tmp_path)
    out = tmp_path / "demo"
    before, after = (json.loads((out / name / "scores.json").read_text("utf-8")) for name in ("untrained", "run"))
    assert before["total"] == after["total"] == 240 and before["missing"] == after["missing"] == 0
    assert before["exact_match"] <= 10 and after["exact_match"] >= LEARNED_EM
    answers = json.loads((out / "run" / "predictions.json").read_text("utf-8"))
    assert len(answers) == 240 and sum(bool(text.strip()) for text in answers.values()) > 200
    commands = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ bigqa ")]
    assert commands == ["probe", *["train", "predict", "evaluate"] * 2]
    plan = json.loads((out / "plan.json").read_text("utf-8"))["settings"]
    report = json.loads((out / "run" / "report.json").read_text("utf-8"))
    assert report["settings"]["strategy"] == plan["strategy"]
    assert report["settings"]["micro_batch"] == plan["micro_batch"]
