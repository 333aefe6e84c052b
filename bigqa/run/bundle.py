"""What KorQuAD's CodaLab worksheets take. In: a run's folder. Out: `src/` and `model/`, and a check that they do alone.

The worksheet runs `python src/run.py INPUT OUTPUT` without a network, in an image that has torch and transformers:
`src/` holds this code as a wheel, which needs not be installed, and `model/` is a bundle of its own.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sysconfig
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, read_json, write_text
from bigqa.language import tr
from bigqa.run.wheel import write_wheel
from bigqa.tasks.registry import DEFAULT, kind_of
from bigqa.tasks.scoring import METRICS, as_record, evaluate_files, metric_of
from bigqa.units import GIB
from bigqa.versions import versions

RUN = '''"""Answers questions, offline: python src/run.py INPUT.json OUTPUT.json"""

import runpy
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACES = (Path.cwd() / "model", HERE.parent / "model", HERE / "model")


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model = next((place for place in PLACES if (place / "config.json").is_file()), None)
    if model is None:
        sys.exit("run.py: there is no folder model here, nor beside src")
    with tempfile.TemporaryDirectory(prefix="bigqa-") as folder:
        with zipfile.ZipFile(next(HERE.glob("bigqa-*.whl"))) as wheel:
            wheel.extractall(folder)
        sys.path.insert(0, folder)
        sys.argv = ["bigqa", "predict", str(model), *sys.argv[-2:]]
        runpy.run_module("bigqa.cli", run_name="__main__")


main()
'''
README = """# {name}: a submission for KorQuAD's CodaLab worksheets

    src/run.py            python src/run.py INPUT.json OUTPUT.json
    src/{wheel}
                          the code, which needs not be installed
    src/requirements.txt  what an image must have: the versions that the model was trained with
    src/Dockerfile        such an image, for the CPU
    model/                the model

Try it here:

    python src/run.py dev.json predictions.json

On CodaLab (https://worksheets.codalab.org), with `cl` and an image of your own on a public registry:

    docker build -t USER/bigqa src && docker push USER/bigqa
    cl upload src
    cl upload model
    cl run src:src model:model dev.json:0x... "python src/run.py dev.json predictions.json" \\
        -n run-predictions --request-docker-image USER/bigqa --request-memory {memory}g
    cl make run-predictions/predictions.json -n predictions-{name}
"""
DOCKERFILE = """FROM python:{python}-slim
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir -r /tmp/requirements.txt
"""
LIMIT_S = 3600.0


ANSWERS = "question-answering"
"""The pipeline of tasks whose models answer in texts, as worksheets want it."""


@dataclass(frozen=True)
class Checked:
    """How the command did by itself."""

    scores: dict[str, Any]
    overlap: str
    """The measure beside exact match, as it is in the scores."""
    cut_off: bool
    """Whether it had no network: not every system lets a user take it away."""


def make_bundle(run: Path, out: Path) -> None:
    """Write the folder for a run's model. Raises: BigqaError where the run has none, or `out` is there."""
    model = run / "model"
    if not (model / "config.json").is_file():
        raise BigqaError(
            tr("{run} has no model yet: train it to its end, or name the folder of a run that is complete", run=run)
        )
    task = _read_task(model)
    if kind_of(task).pipeline != ANSWERS:
        raise BigqaError(
            tr(
                "{model} is a model of --task {task}: KorQuAD's worksheets take answers to questions",
                model=model,
                task=task,
            )
        )
    with atomic_folder(out) as temporary:
        shutil.copytree(model, temporary / "model")
        source = temporary / "src"
        source.mkdir()
        wheel = write_wheel(source)
        known = versions()
        python = ".".join(known["python"].split(".")[:2])
        size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
        memory = 2 + -(-3 * size // GIB)
        write_text(source / "run.py", RUN)
        write_text(source / "requirements.txt", _requirements())
        write_text(source / "Dockerfile", DOCKERFILE.format(python=python))
        write_text(temporary / "README.md", README.format(name=out.resolve().name, wheel=wheel.name, memory=memory))


def _requirements() -> str:
    """Return what bigqa needs, each in the version that is here: of torch any build of it will do."""
    needed = [Requirement(line) for line in importlib.metadata.requires("bigqa") or ()]
    names = [one.name for one in needed if one.marker is None]
    return "".join(f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n" for name in names)


def check_bundle(out: Path, dev_file: Path) -> Checked:
    """Run the bundle's command by itself, and score its answers as the official script does. Raises: BigqaError.

    By itself: an environment of Python's own without this bigqa, no variables but those of a fresh login, a folder that
    holds nothing but the bundle and the questions, and no network.
    """
    with tempfile.TemporaryDirectory(prefix="bigqa-bundle-") as name:
        folder = Path(name)
        python = _empty_environment(folder / "python")
        shutil.copy(dev_file, folder / "dev.json")
        for part in ("src", "model"):
            (folder / part).symlink_to((out / part).resolve())
        alone = _without_network()
        done = subprocess.run(
            [*alone, python, "src/run.py", "dev.json", "predictions.json"],
            cwd=folder, env={"PATH": os.defpath, "HOME": name, "LANG": "C.UTF-8"}, capture_output=True, text=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BigqaError(
                tr(
                    "the bundle's command ended with {returncode}: {stderr}",
                    returncode=done.returncode,
                    stderr=done.stderr.strip()[-300:],
                )
            )
        metric = metric_of(dev_file)
        scores = as_record(evaluate_files(dev_file, folder / "predictions.json", metric), metric)
        return Checked(scores, METRICS[metric].overlap.lower().replace("-", "_"), bool(alone))


def _read_task(model: Path) -> str:
    file = model / "bigqa.json"
    return str(read_json(file, tr("the model's options")).get("task", DEFAULT)) if file.is_file() else DEFAULT


def _empty_environment(folder: Path) -> Path:
    """Make an environment that sees the libraries of this one, and no bigqa; return its Python."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (own,) = folder.glob("lib/python*/site-packages")
    # A line of a .pth file adds a folder and does not run what .pth files in it say, as those of an editable bigqa.
    places = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (own / "libraries.pth").write_text("".join(f"{place}\n" for place in places), encoding="utf-8")
    return python


def _without_network() -> list[str]:
    """Return the words before a command that take its network away; none where this system does not let us."""
    for words in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        if (
            shutil.which(words[0])
            and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
        ):
            return words
    return []
