"""The wheel holds all that runs, names all that it needs, and works where there is no checkout.

Built offline from a copy of the tree by the build backend itself; installed into a folder that is all of PYTHONPATH.
"""

import ast
import email.message
import email.parser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from commands import LIMIT_S
from packaging.requirements import Requirement

import bigqa
from bigqa import versions
from bigqa.configs import FOLDER as CONFIGS
from bigqa.configs import files, write_out
from bigqa.demo import LEARNED_EM, clear
from bigqa.errors import BigqaError, UsageError

ROOT = Path(__file__).parents[1]
PACKAGE = Path(bigqa.__file__).parent
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")
OF_THE_ROOT = {"demo", "demo-comments", "demo-lm", "runs", "site"}
"""What commands leave in a checkout."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the wheel and the source archive as `python -m build --no-isolation` does; the checkout stays as it is."""
    tree, out = tmp_path_factory.mktemp("tree") / "bigqa", tmp_path_factory.mktemp("dist")

    def ignored(folder: str, names: list[str]) -> set[str]:
        return LEFT_OUT(folder, names) | (OF_THE_ROOT & set(names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, tree, ignore=ignored)
    return {kind: build(tree, kind, out) for kind in ("sdist", "wheel")}


def build(tree: Path, kind: str, out: Path) -> Path:
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=tree, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def site(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, alone, into a folder."""
    folder = tmp_path_factory.mktemp("site")
    words = ["install", "--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--target", str(folder), str(built["wheel"])], check=True, timeout=LIMIT_S
    )
    return folder


@pytest.fixture(scope="session")
def metadata(built: dict[str, Path]) -> email.message.Message:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(wheel.read(name).decode("utf-8"))


def run(site: Path, folder: Path, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a program of the installed wheel in a folder that has nothing to do with the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "BIGQA_CACHE": str(folder / "cache")}
    command = [str(word) for word in words]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return done


def test_the_wheel_holds_every_file_of_the_package(built: dict[str, Path]) -> None:
    here = {f"bigqa/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*") if path.is_file()}
    with zipfile.ZipFile(built["wheel"]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {name for name in here if "__pycache__" not in name}


def test_the_source_archive_makes_the_same_wheel_and_holds_the_tests(built: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(built["sdist"]) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    [tree] = tmp_path.iterdir()
    for folder in ("tests", "benchmarks"):
        files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()]
        wanted = {path for path in files if "__pycache__" not in path.parts}
        assert wanted <= {path.relative_to(tree) for path in tree.rglob("*")}
    for name in ("Makefile", "constraints.txt", "CHANGELOG.md", "CITATION.cff", "LICENSE", "README.ko.md"):
        assert (tree / name).read_bytes() == (ROOT / name).read_bytes()
    again = build(tree, "wheel", tmp_path)
    with zipfile.ZipFile(built["wheel"]) as one, zipfile.ZipFile(again) as other:
        assert {info.filename: info.CRC for info in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


def test_the_version_is_one(metadata: email.message.Message) -> None:
    assert metadata["Version"] == bigqa.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == bigqa.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None and newest[1] == bigqa.__version__


def third_party() -> set[str]:
    """Return the top-level names that the package imports, wherever in a file."""
    names = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    # `bigqa_rehearsal` is what bigqa puts into a rehearsed command's own Python.
    return names - set(sys.stdlib_module_names) - {"bigqa", "bigqa_rehearsal", "__future__"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_required_and_what_is_required_is_imported(metadata: email.message.Message) -> None:
    named = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    tools = ("test", "mutants", "audit", "peers", "docs")
    required = {normal(need.name) for need in named if not any(one in str(need.marker) for one in tools)}
    owners = importlib.metadata.packages_distributions()
    imported = {normal(owner) for name in third_party() for owner in owners.get(name, [name])[:1]}
    assert imported <= required, "imported without being required"
    # Through BeautifulSoup and SQLAlchemy by their names, through torch.utils.tensorboard, and what runs a notebook.
    without_import = {"lxml", "psycopg", "tensorboard", "ipykernel", "nbclient", "nbformat"}
    assert required - imported - without_import <= set(versions.PACKAGES), "required without being used"


def test_an_environment_keeps_its_torch(metadata: email.message.Message) -> None:
    """pip leaves alone what satisfies a requirement: 2.11 to 2.14 in any build, and what comes after."""
    named = {need.name: need for need in map(Requirement, metadata.get_all("Requires-Dist", []))}
    for version in ("2.11.0+cu128", "2.12.1", "2.13.0+cpu", "2.14.1+cu130", "2.15.0"):
        assert named["torch"].specifier.contains(version), version
    assert not named["torch"].specifier.contains("2.10.0")


def test_commands_run_outside_of_a_checkout(site: Path, tmp_path: Path) -> None:
    here = run(site, tmp_path, sys.executable, "-c", "import bigqa; print(bigqa.__file__)")
    assert Path(here.stdout.strip()).parent == site / "bigqa"
    program = site / "bin" / "bigqa"
    assert run(site, tmp_path, program, "--version").stdout == f"bigqa {bigqa.__version__}\n"
    assert "--train-file" in run(site, tmp_path, sys.executable, "-m", "bigqa.train", "--help").stdout
    words = ["probe", "tiny", "--gpu", "none", "--strategy", "cpu", "--out", "p.json", "--html", "p.html"]
    done = run(site, tmp_path, program, *words)
    assert "accelerate launch --config_file p.accelerate.yaml -m bigqa.train --plan p.json" in done.stdout
    assert "<table>" in (tmp_path / "p.html").read_text(encoding="utf-8")
    config = yaml.safe_load((tmp_path / "p.accelerate.yaml").read_text(encoding="utf-8"))
    assert config["num_processes"] == 1 and config["use_cpu"]


@pytest.mark.parametrize("safe", ["", "1"])
def test_run_as_a_file_the_trainer_is_that_files_own(site: Path, tmp_path: Path, safe: str) -> None:
    """Another bigqa may be installed, or lie where one happens to be; `python -P` puts no folder on the path itself."""
    (tmp_path / "bigqa").mkdir()
    (tmp_path / "bigqa" / "__init__.py").write_text("raise ImportError('another bigqa')", encoding="utf-8")
    told = "import atexit, sys\natexit.register(lambda: print(*sys.path, sep='\\n', file=sys.stderr))\n"
    (tmp_path / "sitecustomize.py").write_text(told, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": safe}
    command = [sys.executable, str(site / "bigqa" / "train.py"), "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert "--train-file" in done.stdout
    path = done.stderr.splitlines()
    assert path[0] == str(site) and str(site / "bigqa") not in path
    assert str(tmp_path) in path and any(entry.endswith(".zip") for entry in path)  # what was there is there


@pytest.mark.slow
def test_a_run_is_launched_as_a_module(site: Path, tmp_path: Path) -> None:
    """From the wheel: in one process, and in two, which on a CPU the first one starts itself (see spread_out)."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    words = ["--model", "tiny", "--train-file", site / "bigqa" / "sample" / "train.json", "--limit", "16"]
    words += ["--global-batch", "4", "--device", "cpu", "--precision", "fp32", "--dropout", "0"]
    alone = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    run(site, tmp_path, *accelerate, *alone, "-m", "bigqa.train", *words, "--max-steps", "2", "--out", "one")
    two = ["--config_file", site / "bigqa" / "configs" / "launch" / "cpu_2.yaml"]
    run(site, tmp_path, *accelerate, *two, "-m", "bigqa.train", *words, "--max-steps", "2", "--out", "two")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    report = json.loads((tmp_path / "two" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["max_steps"] == 2


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path, sys.executable, "-m", "bigqa.demo")
    scores = json.loads((tmp_path / "demo" / "run" / "scores.json").read_text(encoding="utf-8"))
    assert scores["exact_match"] >= LEARNED_EM


def test_a_demo_clears_what_a_demo_made_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "demo"
    (mine / "run").mkdir(parents=True)
    with pytest.raises(UsageError, match="not an earlier demo's"):  # a run of somebody's, without the demo's plan
        clear(mine)
    (mine / "plan.json").write_text("{}", encoding="utf-8")
    (mine / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not an earlier demo's"):
        clear(mine)
    assert {path.name for path in mine.iterdir()} == {"run", "plan.json", "thesis.txt"}
    (mine / "thesis.txt").unlink()
    clear(mine)
    assert not mine.exists()
    clear(mine)  # nothing there: nothing to do


def test_the_files_for_launchers_are_written_out_and_never_over_changes(tmp_path: Path) -> None:
    out = tmp_path / "files"
    written = write_out(out)
    assert {path.relative_to(out) for path in written} == {path.relative_to(CONFIGS) for path in files()}
    assert all(path.read_bytes() == (CONFIGS / path.relative_to(out)).read_bytes() for path in written)
    assert os.access(out / "launch" / "torchrun.sh", os.X_OK)
    write_out(out)  # the same files again
    (out / "launch" / "slurm.sbatch").write_text("mine", encoding="utf-8")
    (out / "launch" / "gpu_1.yaml").unlink()
    with pytest.raises(BigqaError, match=r"slurm\.sbatch is there and differs"):
        write_out(out)
    assert (out / "launch" / "slurm.sbatch").read_text(encoding="utf-8") == "mine"
    assert not (out / "launch" / "gpu_1.yaml").exists()  # all or nothing


def test_a_commit_is_told_only_of_a_repository_that_holds_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment within a repository of something else, as `.venv` in most projects."""
    git = ["git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-C", str(tmp_path)]
    file = tmp_path / ".venv" / "bigqa" / "versions.py"
    file.parent.mkdir(parents=True)
    file.write_text("", encoding="utf-8")
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "of something else"]):
        subprocess.run([*git, *words], check=True, timeout=LIMIT_S)
    monkeypatch.setattr(versions, "__file__", str(file))
    assert versions.commit() is None
    for words in (["add", "-A"], ["commit", "-q", "-m", "the code itself"]):
        subprocess.run([*git, *words], check=True, timeout=LIMIT_S)
    found = subprocess.run([*git, "rev-parse", "HEAD"], check=True, timeout=LIMIT_S, capture_output=True, text=True)
    assert versions.commit() == found.stdout[:12]
    file.write_text("changed", encoding="utf-8")
    assert versions.commit() == found.stdout[:12] + "+"
