"""`bigqa bundle`: what is handed in answers by itself, without a network, as `bigqa predict` does."""

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import here
from small_runs import train

from bigqa import __version__
from bigqa.run import bundle
from bigqa.run.wheel import PACKAGE, write_wheel
from bigqa.sample import FOLDER
from bigqa.tasks.scoring import as_record, evaluate_files

DEV = FOLDER / "dev.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A complete run's folder, without weights."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "bigqa.json").write_text('{"task": "qa"}', encoding="utf-8")
    return model.parent


def questions(folder: Path, count: int) -> Path:
    """Write the first few questions of the dev file."""
    data = json.loads(DEV.read_text(encoding="utf-8"))
    article = data["data"][0] | {"paragraphs": data["data"][0]["paragraphs"][:count]}
    file = folder / "questions.json"
    file.write_text(json.dumps(data | {"data": [article]}, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.mark.slow
def test_the_command_answers_alone_as_predict_does(tmp_path: Path) -> None:
    run = tmp_path / "trained"
    train(run, max_steps=2)
    asked = questions(tmp_path, 2)
    done = here("bundle", run, "--out", tmp_path / "out", "--dev-file", asked)
    assert done.returncode == 0, done.stderr
    assert here("predict", run / "model", asked, tmp_path / "answers.json").returncode == 0
    expected = as_record(evaluate_files(asked, tmp_path / "answers.json", "korquad1"), "korquad1")
    line = done.stdout.splitlines()[-1]
    assert line.startswith("its command, in an empty environment")
    figures = f"EM {expected['exact_match']:.2f}, f1 {expected['f1']:.2f} on {expected['total']} questions"
    assert figures in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model", "src"]
    readme = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "python src/run.py dev.json predictions.json" in readme and "--request-memory 3g" in readme


def test_it_is_the_bundles_own_code_that_runs(tmp_path: Path) -> None:
    python = bundle._empty_environment(tmp_path / "python")
    done = subprocess.run(
        [python, "-c", "import bigqa"], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert "No module named 'bigqa'" in done.stderr
    assert subprocess.run([python, "-c", "import numpy"], cwd=tmp_path, env={}, check=False).returncode == 0
    alone = bundle._without_network()
    if not alone:
        pytest.skip("this system lets nobody take the network away")
    code = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    said = subprocess.run([*alone, sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert "Network is unreachable" in said


def test_the_wheel_holds_what_is_imported(tmp_path: Path) -> None:
    path = write_wheel(tmp_path)
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        assert wheel.testzip() is None
        record = wheel.read(f"bigqa-{__version__}.dist-info/RECORD").decode()
    files = {f"bigqa/{file.relative_to(PACKAGE)}" for file in PACKAGE.rglob("*.py")}
    assert files <= names and not [name for name in names if "__pycache__" in name]
    assert {line.split(",")[0] for line in record.splitlines()} == names
    words = ["install", "--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--target", tmp_path / "site", path], capture_output=True, check=False
    )
    assert done.returncode == 0 and (tmp_path / "site/bigqa/cli/bundle.py").is_file(), done.stderr


def test_what_an_image_must_have_is_what_is_here() -> None:
    lines = bundle._requirements().splitlines()
    assert f"transformers=={importlib.metadata.version('transformers')}" in lines
    assert not [line for line in lines if "+" in line or "deepspeed" in line]


def test_what_cannot_be_bundled_is_refused_in_a_line(run: Path, tmp_path: Path) -> None:
    unfinished = here("bundle", tmp_path / "no", "--no-check", "--out", tmp_path / "out")
    assert unfinished.returncode == 1 and "has no model yet: train it to its end" in unfinished.stderr
    assert "no config.json" in here("bundle", tmp_path, "--out", tmp_path / "out").stderr
    done = here("bundle", run, "--no-check", "--out", run)
    assert done.returncode == 1 and "already exists" in done.stderr
    (run / "model/bigqa.json").write_text('{"task": "classify"}', encoding="utf-8")
    other = here("bundle", run, "--no-check", "--out", tmp_path / "out")
    assert other.returncode == 1 and "a model of --task classify" in other.stderr
    assert not (tmp_path / "out").exists()


def test_a_command_that_fails_is_told(run: Path, tmp_path: Path) -> None:
    bundle.make_bundle(run, tmp_path / "out")
    (tmp_path / "out/model/config.json").unlink()
    with pytest.raises(bundle.BigqaError, match=r"ended with 1: run\.py: there is no folder model"):
        bundle.check_bundle(tmp_path / "out", questions(tmp_path, 1))
