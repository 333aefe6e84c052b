"""What a file or folder of somebody else may do: nothing but be read, or be refused; see SECURITY.md."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import small_runs
import torch
from commands import bigqa

from bigqa.engine.loop.disk import Appended
from bigqa.errors import BigqaError
from bigqa.lock import LOCK, held
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import settings_from
from bigqa.sample import FOLDER
from bigqa.tasks.containers import values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "theirs"
    small_runs.train(folder)
    return folder


def test_a_run_folder_that_leads_elsewhere_is_not_written_through(run: Path, tmp_path: Path) -> None:
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    shutil.copytree(run, theirs)
    shutil.rmtree(theirs / "checkpoints/step-00000006")
    mine.write_text("mine\n")
    for name in ("metrics.jsonl", "log.txt"):
        (theirs / name).unlink()
        (theirs / name).symlink_to(mine)
    with pytest.raises(BigqaError, match=r"log.txt: it is a symbolic link, which could lead out of its folder"):
        fine_tune(settings_from({}, theirs), resume=True)
    assert mine.read_text() == "mine\n"


def test_lines_that_are_none_keep_no_run_from_going_on(run: Path, tmp_path: Path) -> None:
    theirs = Path(shutil.copytree(run, tmp_path / "theirs"))
    shutil.rmtree(theirs / "checkpoints/step-00000006")
    for name in ("metrics.jsonl", "evaluations.jsonl", "switches.jsonl"):
        lines = (theirs / name).read_bytes().splitlines() if (theirs / name).is_file() else [b"{}"]
        (theirs / name).write_bytes(b"\n".join([*lines[:2], b"\xff\x00{", b"3", b'{"step": "x"}', *lines[2:], b'{"st']))
    fine_tune(settings_from({}, theirs), resume=True)
    assert [one["step"] for one in small_runs.metrics(theirs)] == list(range(1, small_runs.STEPS + 1))


def test_neither_is_its_lock(run: Path, tmp_path: Path) -> None:
    theirs = Path(shutil.copytree(run, tmp_path / "theirs"))
    (theirs / LOCK).unlink(missing_ok=True)
    (theirs / LOCK).symlink_to(tmp_path / "made")
    with pytest.raises(BigqaError, match="symbolic link"), held(theirs, print):
        pass
    assert not (tmp_path / "made").exists()


def test_what_replaces_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    """Plans, reports and configs are renamed into place: the link goes, and nothing is written through it."""
    from bigqa.files import write_json

    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "report.json").symlink_to(mine)
    write_json(tmp_path / "report.json", {})
    assert mine.read_text() == "mine" and not (tmp_path / "report.json").is_symlink()


def test_names_in_an_archive_are_no_places(tmp_path: Path) -> None:
    content = json.dumps({"data": []})
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in ("../out.json", "/tmp/bigqa-out.json"):
            archive.writestr(name, content)
    before = {path for path in tmp_path.parent.iterdir()}
    assert [value for value, _ in values(tmp_path / "data.zip", "the data")] == [{"data": []}] * 2
    assert {path for path in tmp_path.parent.iterdir()} == before and not Path("/tmp/bigqa-out.json").exists()


def test_a_checkpoint_in_a_pickle_is_never_run(run: Path, tmp_path: Path) -> None:
    """A folder that calls a pickle safetensors: it is no such file, sealed or not."""
    theirs = Path(shutil.copytree(run, tmp_path / "theirs"))
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(mark),)

    path = theirs / "checkpoints/step-00000006"
    torch.save(Evil(), path / "weights.safetensors")
    from bigqa.engine.loop import checkpoint, manifest

    (path / manifest.FILE).unlink()
    manifest.write(path, {}, {}, 6, {})
    said: list[str] = []
    found = checkpoint.load_newest(path.parent, said.append)
    assert found is not None and found.step == 4 and "cannot be read" in said[0] and not mark.exists()


def test_what_lies_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    """A folder of data may hold a torch.py: a command that is started there must not run it."""
    for name in ("torch", "transformers", "sitecustomize", "bigqa", "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken over')\n")
    program = Path(sys.executable).with_name("bigqa")
    if not program.is_file():
        pytest.skip("bigqa is not installed here as a program")
    done = subprocess.run([program, "data", "inspect", FOLDER / "train.json", "tiny"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0 and "taken over" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", ["<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>"])
def test_pages_show_markup_and_have_none_of_it(run: Path, tmp_path: Path, words: str) -> None:
    theirs = Path(shutil.copytree(run, tmp_path / "theirs"))
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(config | {"model": words}))
    example = {"kind": "worst", "text": words, "marks": [], "certainty": None, "figure": words, "value": 0.0}
    (theirs / "examples.jsonl").write_text(json.dumps(example) + "\n")
    done = bigqa("page", theirs, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and "<img src=x" not in page and "alert(1)" in page


def test_lines_go_where_they_are_meant(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BigqaError, match="symbolic link"):
        Appended(tmp_path / "link").line("x")
    assert not (tmp_path / "elsewhere").exists()
