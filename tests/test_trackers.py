"""A tracker of experiments is told what the run's folder holds, in its own store; what fails there ends no run."""

import importlib.util
import json
import os
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import bigqa
from small_runs import metrics

from bigqa.run.tracking import PLACES
from bigqa.sample import FOLDER

WORDS = ["train", "--model", "tiny", "--device", "cpu", "--train-file", FOLDER / "train.json", "--limit", "12"]
WORDS += ["--dev-file", FOLDER / "dev.json", "--max-steps", "4", "--save-every", "2", "--global-batch", "4"]
Losses = dict[int, float]


def of_mlflow(folder: Path) -> tuple[Losses, set[str]]:
    """Return the losses of each step in MLflow's database, and the names of all figures."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        found = database.execute("select key, step, value from metrics").fetchall()
    return {step: value for key, step, value in found if key == "loss"}, {key for key, *_ in found}


def of_trackio(folder: Path) -> tuple[Losses, set[str]]:
    """Return the same of Trackio's database."""
    with sqlite3.connect(folder / "trackio" / "bigqa.db") as database:
        found = [(step, json.loads(said)) for step, said in database.execute("select step, metrics from metrics")]
    return {step: said["loss"] for step, said in found if "loss" in said}, {name for _, said in found for name in said}


WANDB_HEAD, RECORD_HEAD, BLOCK = 7, 7, 2**15
WHOLE, LAST = 1, 4


def leveldb_records(file: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's form: in blocks, each part with its checksum, its length and its type."""
    at, record = WANDB_HEAD, b""
    while at + RECORD_HEAD <= len(file):
        if BLOCK - at % BLOCK < RECORD_HEAD:
            at += BLOCK - at % BLOCK  # what is left of a block is no place for a part
            continue
        _, length, kind = struct.unpack_from("<IHB", file, at)
        record += file[at + RECORD_HEAD : at + RECORD_HEAD + length]
        at += RECORD_HEAD + length
        if kind in (WHOLE, LAST):
            yield record
            record = b""


def of_wandb(folder: Path) -> tuple[Losses, set[str]]:
    """Return the same of the files that Weights & Biases keeps for a later upload."""
    from wandb.proto import wandb_internal_pb2

    losses: Losses = {}
    names: set[str] = set()
    for file in (folder / "run").rglob("*.wandb"):
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            said = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            names |= set(said)
            if "loss" in said:
                losses[int(said["_step"])] = said["loss"]
    return losses, names


READ: dict[str, Callable[[Path], tuple[Losses, set[str]]]] = {
    "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_a_tracker_is_told_what_the_folder_holds(name: str, tmp_path: Path) -> None:
    """The tracker itself, as installed (`pip install wandb mlflow trackio`), without network."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    own = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    own |= {"TRACKIO_DIR": str(tmp_path / "trackio")}
    done = bigqa(*WORDS, "--out", tmp_path / "run", "--eval-every", "2", "--tracker", name, **own)
    assert done.returncode == 0, done.stderr
    assert "is left alone" not in done.stdout + done.stderr
    losses, names = READ[name](tmp_path)
    assert losses == {line["step"]: pytest.approx(line["loss"]) for line in metrics(tmp_path / "run")}
    assert {"dev/f1", "final/f1", "lr", "memory_bytes"} <= names


def test_a_tracker_that_fails_is_told_of_once_and_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "trackio.py").write_text("raise OSError('the server is away')", encoding="utf-8")
    path = os.pathsep.join((str(tmp_path / "site"), *filter(None, sys.path)))
    done = bigqa(*WORDS, "--out", tmp_path / "run", "--tracker", "trackio", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "is left alone" in line]
    assert told == ["--tracker trackio failed and is left alone: the server is away"]
    assert len(metrics(tmp_path / "run")) == 4


@pytest.mark.parametrize("name", ["comet", "mlflow"])
def test_a_tracker_that_cannot_be_had_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    done = bigqa(*WORDS, "--out", tmp_path / "run", "--tracker", name)
    assert len(done.stderr.splitlines()) == 1
    if name == "mlflow":
        assert (done.returncode, done.stderr) == (1, "bigqa: --tracker mlflow is not installed: pip install mlflow\n")
    else:
        assert done.returncode == 2 and done.stderr.endswith(f"choose one of {', '.join(PLACES)}\n")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
