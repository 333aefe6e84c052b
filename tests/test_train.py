"""Whole runs in real processes on a slice of the sample: curves, kills, resumes, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bigqa.sample import FOLDER

TRAIN = Path(__file__).parents[1] / "bigqa" / "train.py"
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


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Features are cached apart from the user's; nothing is fetched."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"BIGQA_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)}


def bigqa(environment: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bigqa.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def train(environment: dict[str, str], out: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return bigqa(environment, "train", *SMALL, "--train-file", str(FOLDER / "train.json"), "--out", str(out), *words)


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


@pytest.fixture(scope="session")
def unbroken(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    done = train(environment, out, "--max-steps", "200", "--save-every", "50")
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
    assert [record["step"] for record in metrics(unbroken)] == list(range(1, 201))
    assert list((unbroken / "tensorboard").iterdir())
    report = json.loads((unbroken / "report.json").read_text())
    assert report["steps"] == 200 and report["peak_memory_bytes"] > 0
    assert sorted(path.name for path in (unbroken / "checkpoints").iterdir()) == ["step-00000150", "step-00000200"]


def test_kill_nine_and_resume_gives_the_unbroken_run(
    environment: dict[str, str], unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    words = ["--max-steps", "200", "--save-every", "50", "--train-file", str(FOLDER / "train.json")]
    worker = subprocess.Popen(
        [sys.executable, str(TRAIN), *SMALL, *words, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() or len(metrics_so_far(out)) < 60:
        assert worker.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert not (out / "model").exists()
    done = bigqa(environment, "train", "--resume", str(out))
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
    assert losses(out) == losses(unbroken)
    assert_same_weights(out, unbroken)


def metrics_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def test_ctrl_c_saves_and_says_how_to_go_on(environment: dict[str, str], unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    words = ["--max-steps", "200", "--save-every", "50", "--train-file", str(FOLDER / "train.json")]
    command = [sys.executable, "-m", "bigqa.cli", "train", *SMALL, *words, "--out", str(out)]
    launcher = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that a shell runs in the background inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() or len(metrics_so_far(out)) < 2:
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    launcher.send_signal(signal.SIGINT)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 130, said
    assert f"bigqa train --resume {out}" in said and "Traceback" not in said
    assert len(losses(out)) < 200
    done = bigqa(environment, "train", "--resume", str(out))
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(unbroken)
    assert_same_weights(out, unbroken)


def test_two_processes_give_the_curve_of_one(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["--max-steps", "12", "--dropout", "0", "--lr", "1e-3", "--train-file", str(FOLDER / "train.json")]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = subprocess.run(
        [sys.executable, str(TRAIN), *SMALL, *words, "--out", str(one)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        str(TRAIN),
    ]
    pair = subprocess.run(
        [*launch, *SMALL, *words, "--micro-batch", "2", "--out", str(two)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert pair.returncode == 0, pair.stderr
    assert json.loads((two / "plan.json").read_text())["num_processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert norms(two) == pytest.approx(norms(one), rel=1e-3)  # Adam steps as far whatever gradients are multiplied by
    assert losses(one)[-1] < losses(one)[0]


def test_a_small_last_batch_leaves_no_process_waiting(environment: dict[str, str], tmp_path: Path) -> None:
    # 4 windows in batches of 3: the second step has one window for two processes.
    words = ["--limit", "4", "--global-batch", "3", "--epochs", "1", "--dropout", "0"]
    done = train(environment, tmp_path / "run", *words, "--num-processes", "2")
    assert done.returncode == 0, done.stderr
    assert [record["windows"] for record in metrics(tmp_path / "run")] == [3, 1]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--seq-len", "4096"], 1, "positions"),
        (["--epochs", "0"], 2, "--epochs"),
        (["--precision", "fp64"], 2, "--precision"),
        (["--seq-len", "20"], 2, "--seq-len 20 is too short"),
        (["--model", "no-such-model"], 1, "no-such-model"),
        (["--train-file", "missing.json"], 1, "missing.json"),
    ],
)
def test_a_wrong_option_is_one_line(
    environment: dict[str, str], tmp_path: Path, words: list[str], code: int, text: str
) -> None:
    done = train(environment, tmp_path / "run", *words)
    assert done.returncode == code, done.stderr
    assert text in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(environment: dict[str, str], unbroken: Path) -> None:
    done = train(environment, unbroken)
    assert done.returncode == 1
    assert f"--resume {unbroken}" in done.stderr
