"""Whole runs in real processes on a slice of the sample: curves, kills, resumes, refusals."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from commands import LIMIT_S, bigqa, here, run, train_here, until
from safetensors.torch import load_file

from bigqa.sample import FOLDER

STEPS, SAVED_EVERY, KILLED_AT = 40, 10, 15
SMALL = [
    "--model",
    "tiny",
    "--limit",
    "24",
    "--global-batch",
    "5",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--dropout",
    "0.1",
]


SAMPLE = ["--train-file", str(FOLDER / "train.json")]
LONG = ["--max-steps", str(STEPS), "--save-every", str(SAVED_EVERY)]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in metrics(run)]


def norms(run: Path) -> list[float]:
    """Return the norm of each step's gradient, before it is clipped."""
    return [record["grad_norm"] for record in metrics(run)]


def assert_same_weights(one: Path, other: Path) -> None:
    first = load_file(one / "model" / "model.safetensors")
    second = load_file(other / "model" / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    done = train_here(*SMALL, *SAMPLE, "--out", out, *LONG)
    assert done.returncode == 0, done.stderr
    return out


def test_the_run_folder_explains_itself(unbroken: Path) -> None:
    names = {path.name for path in unbroken.iterdir()}
    assert names >= {
        "config.json",
        "plan.json",
        "versions.json",
        "metrics.jsonl",
        "log.txt",
        "tensorboard",
        "checkpoints",
        "model",
        "report.json",
    }
    assert {path.name for path in (unbroken / "model").iterdir()} >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "bigqa.json",
    }
    assert [record["step"] for record in metrics(unbroken)] == list(range(1, STEPS + 1))
    assert list((unbroken / "tensorboard").iterdir())
    report = json.loads((unbroken / "report.json").read_text())
    assert report["steps"] == STEPS and report["peak_memory_bytes"] > 0
    assert sorted(path.name for path in (unbroken / "checkpoints").iterdir()) == ["step-00000030", "step-00000040"]


KILLED = f"""
import os, signal
from bigqa.engine.loop.recorder import Recorder
from bigqa.train import main
step = Recorder.step
def and_no_further(self, record):
    step(self, record)
    if record["step"] == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
Recorder.step = and_no_further
main()
"""


def test_kill_nine_and_resume_gives_the_unbroken_run(unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    killed = run([sys.executable, "-c", KILLED, *SMALL, *SAMPLE, *LONG, "--out", out])
    assert killed.returncode == -signal.SIGKILL
    assert len(metrics(out)) == KILLED_AT and not (out / "model").exists()
    done = bigqa("train", "--resume", out)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
    assert losses(out) == losses(unbroken)
    assert_same_weights(out, unbroken)


def test_ctrl_c_saves_and_says_how_to_go_on(unbroken: Path, tmp_path: Path) -> None:
    """The process that trains stands still meanwhile, or it could come to its end first."""
    out = tmp_path / "stopped"
    launcher = subprocess.Popen(
        [sys.executable, "-m", "bigqa.cli", "train", *SMALL, *SAMPLE, *LONG, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that a shell runs in the background inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until(lambda: (out / "metrics.jsonl").is_file() and len(losses(out)) >= 2, launcher)
    [worker] = psutil.Process(launcher.pid).children()
    worker.suspend()
    launcher.send_signal(signal.SIGINT)
    assert launcher.stdout is not None
    until(lambda: "Stopping" in launcher.stdout.readline(), launcher)  # the worker has been told
    worker.resume()
    said, _ = launcher.communicate(timeout=LIMIT_S)
    assert launcher.returncode == 130, said
    assert f"bigqa train --resume {out}" in said and "Traceback" not in said
    assert len(losses(out)) < STEPS
    done = train_here("--resume", out)
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(unbroken)
    assert_same_weights(out, unbroken)


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    """To the last batch of an epoch, which has one window for both of them: none waits."""
    words = [*SMALL, *SAMPLE, "--limit", "21", "--epochs", "2", "--dropout", "0", "--lr", "1e-3"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = train_here(*words, "--out", one)
    assert alone.returncode == 0, alone.stderr
    pair = bigqa("train", *words, "--micro-batch", "2", "--num-processes", "2", "--out", two)
    assert pair.returncode == 0, pair.stderr
    assert json.loads((two / "plan.json").read_text())["num_processes"] == 2
    assert [record["windows"] for record in metrics(two)] == 2 * [5, 5, 5, 5, 1]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert norms(two) == pytest.approx(norms(one), rel=1e-3)  # Adam steps as far whatever gradients are multiplied by
    assert losses(one)[-1] < losses(one)[0]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--epochs", "0"], 2, "--epochs"),
        (["--precision", "fp64"], 2, "--precision"),
        (["--seq-len", "20"], 2, "--seq-len 20 is too short"),
        (["--model", "no-such-model"], 1, "no-such-model"),
        (["--train-file", "missing.json"], 1, "missing.json"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, words: list[str], code: int, text: str) -> None:
    done = here("train", *SMALL, *SAMPLE, "--out", tmp_path / "run", *words)
    assert done.returncode == code, done.stderr
    assert text in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_windows_longer_than_the_models_positions_are_one_line(tmp_path: Path) -> None:
    """Known where the model is: in the process that trains."""
    done = train_here(*SMALL, *SAMPLE, "--out", tmp_path / "run", "--seq-len", "4096")
    assert done.returncode == 1 and "positions" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(unbroken: Path) -> None:
    done = here("train", *SMALL, *SAMPLE, "--out", unbroken)
    assert done.returncode == 1
    assert f"--resume {unbroken}" in done.stderr
