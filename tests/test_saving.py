"""Checkpoints beside the steps, on a full disk, sealed, and on the disk itself before they are named."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_fit import STEPS, Kept, training

from bigqa import files
from bigqa.engine.loop import checkpoint, disk, fit, manifest, saving
from bigqa.engine.loop.beside import WrittenBeside
from bigqa.engine.processes import Processes
from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, write_json

DEADLINE_S = 60


def _run(out: Path, **options: Any) -> Any:
    run = training(Processes("cpu"), out, Kept(), **options)
    fit.fit(run)
    return run


def _saved(out: Path) -> dict[str, dict[str, str]]:
    """Return the tensors' files of each checkpoint, by their digests."""
    return {path.name: _digests(path) for path in sorted((out / "checkpoints").iterdir())}


def _digests(path: Path) -> dict[str, str]:
    return {file.name: files.sha256(file) for file in sorted(path.glob("*.safetensors"))}


def test_what_is_written_beside_the_steps_is_as_it_was_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps go on while the first is written, and change every weight; the file holds the step's all the same."""
    save, steps, begun = checkpoint.save, [], threading.Event()
    written: dict[str, list[dict[str, str]]] = {"in turn": [], "beside": []}

    def slow(folder: Path, step: int, *rest: Any) -> Path:
        if step == 2 and folder.parent.name == "beside":
            begun.set()
            assert gone_on.wait(DEADLINE_S)
        path = save(folder, step, *rest)
        written[folder.parent.name].append({"step": path.name} | _digests(path))
        return path

    gone_on, one_step = threading.Event(), fit._one_step

    def watched(run: Any, batches: Any, step: int, num_steps: int) -> Any:
        done = one_step(run, batches, step, num_steps)
        steps.append(step)
        if step == 3:  # whose checkpoint waits for the one before
            assert begun.wait(DEADLINE_S) and not (tmp_path / "beside/checkpoints/step-00000002").exists()
            gone_on.set()
        return done

    monkeypatch.setattr(checkpoint, "save", slow)
    _run(tmp_path / "in turn")
    monkeypatch.setattr(fit, "_one_step", watched)
    _run(tmp_path / "beside", beside=WrittenBeside(torch.device("cpu")))
    assert steps == list(range(STEPS))
    assert written["beside"] == written["in turn"] and len(written["beside"]) == 4


def test_without_memory_for_a_copy_the_steps_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "host_memory", lambda: (2**30, 2**20))
    threads, save = set(), checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda *args: (threads.add(threading.current_thread().name), save(*args))[1]
    )
    _run(tmp_path, beside=WrittenBeside(torch.device("cpu")))
    assert threads == {threading.main_thread().name}


def test_what_goes_wrong_beside_the_steps_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Path:
        raise BigqaError("cannot write: no permission")

    monkeypatch.setattr(checkpoint, "save", refused)
    with pytest.raises(BigqaError, match="no permission"):
        _run(tmp_path, beside=WrittenBeside(torch.device("cpu")))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB beside what a checkpoint may take."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = f"size={checkpoint.BESIDE_BYTES * 4}"
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("beside", [False, True])
def test_a_disk_that_is_full_for_a_while(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, *, beside: bool
) -> None:
    monkeypatch.setattr(saving, "AGAIN_STEPS", 1)
    one_step, other = fit._one_step, small_disk / "other"

    def crowded(run: Any, batches: Any, step: int, num_steps: int) -> Any:
        if run.beside is not None and run.beside._writing is not None:
            run.beside._writing.exception()  # waits, and leaves it to be told of
        if step == 1:
            other.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**16))
        if step == 4:
            other.unlink()
        return one_step(run, batches, step, num_steps)

    monkeypatch.setattr(fit, "_one_step", crowded)
    run = _run(small_disk / "run", beside=WrittenBeside(torch.device("cpu")) if beside else None)
    said = " ".join(map(str, run.recorder.said))
    assert "run is full: step 2 is not saved; going on, and trying again" in said
    assert "run is there again: step 5 is saved" in said
    assert said.count("is not saved") == 1
    _run(tmp_path / "roomy")
    assert _saved(small_disk / "run")["step-00000007"] == _saved(tmp_path / "roomy")["step-00000007"]
    assert not list((small_disk / "run").rglob("*.tmp"))


def test_the_last_save_waits_for_room_but_not_of_a_run_that_is_stopped(small_disk: Path) -> None:
    (small_disk / "config.json").touch()
    other = small_disk / "other"
    other.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**16))
    said: list[str] = []

    def write() -> None:
        (small_disk / "new").write_bytes(bytes(2**18))

    def say(text: str) -> None:
        said.append(str(text))
        other.unlink()

    with pytest.raises(BigqaError, match="the disk is full; free some space"):
        disk.waited_for(small_disk, write, said.append, 600.0, for_room=False)
    assert disk.waited_for(small_disk, write, say, 600.0, for_room=True) and (small_disk / "new").stat().st_size
    assert len(said) == 1 and "is full, and the last step is not saved yet: waiting up to 10 min for room" in said[0]


def test_a_run_that_its_disk_has_no_room_for_is_refused_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(Processes("cpu"), tmp_path, Kept())
    values = sum(parameter.numel() for parameter in run.parts.model.parameters())
    assert run.parts.update.numel() == values
    # Three checkpoints (--keep 2 and a new one), of a weight and two moments each, and the model.
    least = (3 * 3 + 1) * 4 * values
    monkeypatch.setattr(saving, "free_space", lambda _: least)
    with pytest.raises(BigqaError, match=r"this run writes up to .* 3 checkpoints of .* a smaller --keep"):
        fit.fit(run)
    assert not run.recorder.records
    monkeypatch.setattr(saving, "free_space", lambda _: int(least * 1.02) + 3 * checkpoint.BESIDE_BYTES)
    fit.fit(run)
    written = sum(file.stat().st_size for file in (tmp_path / "checkpoints/step-00000007").iterdir())
    assert 12 * values < written <= checkpoint.size_of(values)


def test_a_manifest_tells_of_every_byte(tmp_path: Path) -> None:
    """Independent of what reads it: sizes and digests are those of coreutils."""
    _run(tmp_path, plan={"seq_len": 16})
    path = tmp_path / "checkpoints/step-00000007"
    said = json.loads((path / "manifest.json").read_text())
    told = subprocess.run(["sha256sum", *said["files"]], cwd=path, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1]: line.split()[0] for line in told.splitlines()} == {
        name: one["sha256"] for name, one in said["files"].items()
    }
    assert {name: (path / name).stat().st_size for name in said["files"]} == {
        name: one["bytes"] for name, one in said["files"].items()
    }
    assert set(said["files"]) | {"manifest.json"} == {file.name for file in path.iterdir()}
    assert said["step"] == 7 and {"torch", "bigqa"} <= set(said["versions"]) and said["plan"] == {"seq_len": 16}
    write_json(path / "manifest.json", said | {"step": 8})
    with pytest.raises(BigqaError, match=r"manifest.json does not match its own seal"):
        list(manifest.check(path))


def test_a_checkpoint_of_before_is_read_by_its_checksums(tmp_path: Path) -> None:
    _run(tmp_path)
    path = tmp_path / "checkpoints/step-00000007"
    (path / "manifest.json").unlink()
    sums = {file.name: files.sha256(file) for file in path.iterdir()}
    write_json(path / "checksums.json", sums)
    found = checkpoint.load_newest(path.parent, pytest.fail)
    assert found is not None and found.step == 7
    assert set(found.state.weights) == set(load_file(path / "weights.safetensors"))
    write_json(path / "checksums.json", sums | {"adam.safetensors": "0" * 64})
    said: list[str] = []
    found = checkpoint.load_newest(path.parent, said.append)
    assert found is not None and found.step == 6 and "adam.safetensors: it does not match its checksum" in said[0]


def test_files_are_on_the_disk_before_they_are_named_and_names_before_anything_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves is what was waited for: each file, then its folder, then the name of both."""
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda at: (events.append(("disk", os.readlink(f"/proc/self/fd/{at}"))), fsync(at))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("name", str(b))), replace(a, b)))
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "one").write_text("1")
        write_json(folder / "two", {})
        inner = [Path(path).name for what, path in events if what == "disk"]
        assert inner[0].startswith(".two.") and Path(inner[1]) == Path(folder.name)
        events.clear()
    kinds = [(what, Path(path).name) for what, path in events]
    assert set(kinds[:2]) == {("disk", "one"), ("disk", "two")}
    assert kinds[2:] == [("disk", folder.name), ("name", "new"), ("disk", tmp_path.name)]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_that_is_replaced_is_there_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, can_exchange: bool
) -> None:
    path = tmp_path / "kept"
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    missing: list[bool] = []
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **b: (missing.append(not path.exists()), remove(*a, **b))[1])
    for number in range(3):
        with atomic_folder(path, replace=True) as folder:
            (folder / "number").write_text(str(number))
        assert (path / "number").read_text() == str(number) and [one.name for one in tmp_path.iterdir()] == ["kept"]
    assert missing and not any(missing)
