"""One run at a time in a folder: with flock and without, on this machine and seen from another, killed and copied."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import train_here

from bigqa import lock
from bigqa.errors import BigqaError
from bigqa.lock import FILES, LOCK, OWNER, Owner, check_free, held, read_owner
from bigqa.run.folder import begin, settings_from
from bigqa.sample import FOLDER
from bigqa.settings import make_settings

OWNER_PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from bigqa import lock
lock.BEAT_S = 0.05
with lock.held(Path(sys.argv[1])) as found:
    if sys.argv[2:]:  # a worker, which gets the lock handed on
        worker = subprocess.Popen(["sleep", "60"], pass_fds=[found.file], stdout=-3, stderr=-3)
        print(worker.pid, flush=True)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    monkeypatch.setattr(lock, "WATCHED_S", 0.3)


def never(*_: Any) -> None:
    raise AssertionError("it waited")


def started(folder: Path, *more: str) -> "tuple[subprocess.Popen[str], int | None]":
    """Hold a folder from another process; return it, and its worker's number."""
    command = [sys.executable, "-c", OWNER_PROGRAM, str(folder), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline()) if more else None
    assert process.stdout.readline() == "held\n"
    return process, worker


def test_the_second_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    with held(run):
        owner = read_owner(run)
        assert owner is not None and owner.pid == os.getpid()
        with pytest.raises(BigqaError, match=f"in use by a run on {owner.host}, process {owner.pid}, since 20"):
            held(run).__enter__()
        check_free(run)  # by the one that has it
        (run / "result").touch()
    assert [path.name for path in run.iterdir()] == ["result"]
    with held(run):
        pass


def test_of_a_run_that_came_to_nothing_no_folder_is_left(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())


def test_after_kill_nine_and_on_a_copy_the_next_start_works_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.time, "sleep", never)
    run, copy = tmp_path / "run", tmp_path / "copy"
    owner, _ = started(run)
    with pytest.raises(BigqaError, match=f"process {owner.pid}, since"):
        held(run).__enter__()
    with pytest.raises(BigqaError, match=f"process {owner.pid}, since"):
        check_free(run)
    shutil.copytree(run, copy)
    assert {path.name for path in copy.iterdir()} == FILES
    check_free(copy)
    with held(copy):  # of a folder whose run goes on
        pass
    owner.kill()
    owner.communicate()
    assert {path.name for path in run.iterdir()} == FILES
    check_free(run)
    with held(run):
        assert (read_owner(run) or pytest.fail()).pid == os.getpid()


def test_a_worker_keeps_what_its_launcher_had(tmp_path: Path) -> None:
    owner, worker = started(tmp_path, "with a worker")
    owner.kill()
    owner.communicate()
    with pytest.raises(BigqaError, match=f"process {owner.pid}, since"):
        held(tmp_path).__enter__()
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    check_free(tmp_path)


def test_what_an_ended_owner_leaves_for_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last threads and workers; of an owner that lives, nothing is waited for."""
    owner, worker = started(tmp_path, "with a worker")
    assert worker is not None
    sleep = time.sleep
    monkeypatch.setattr(lock.time, "sleep", never)
    with pytest.raises(BigqaError, match=f"process {owner.pid}, since"):
        held(tmp_path).__enter__()

    def last(seconds: float) -> None:
        os.kill(worker, signal.SIGKILL)
        sleep(seconds)

    owner.kill()
    owner.communicate()
    monkeypatch.setattr(lock.time, "sleep", last)
    with held(tmp_path):
        pass


def test_who_was_handed_the_lock_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path) as found:
        monkeypatch.setattr(lock, "_here", [])  # as in another process
        monkeypatch.setenv(lock.HANDED_ON, str(found.file))
        check_free(tmp_path)
        before = read_owner(tmp_path)
        monkeypatch.setattr(lock.os, "getpid", lambda: 1)
        with held(tmp_path):
            assert read_owner(tmp_path) == before
        assert {path.name for path in tmp_path.iterdir()} == FILES  # the launcher's to remove
        monkeypatch.undo()
        monkeypatch.setattr(lock, "_here", [found.file])


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_process_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.time, "sleep", never)
    owner, _ = started(tmp_path)
    with pytest.raises(BigqaError, match=f"process {owner.pid}, since"):
        held(tmp_path).__enter__()
    owner.kill()
    owner.communicate()
    with held(tmp_path):
        pass


def elsewhere(folder: Path, **changes: Any) -> None:
    """Leave the folder as an owner on another machine has it."""
    with held(folder):
        text = (folder / OWNER).read_text(encoding="utf-8")
        (folder / LOCK).rename(folder / "kept")  # with its inode
    owner = Owner(**json.loads(text))
    (folder / "kept").rename(folder / LOCK)
    other = replace(owner, **{"host": "node7", "boot": "another", "token": "theirs"} | changes)
    (folder / OWNER).write_text(json.dumps(vars(other)), encoding="utf-8")


@pytest.fixture
def fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the temporary folder's file system be one that each mount numbers anew."""
    device = tmp_path.stat().st_dev
    line = f"40 1 {os.major(device)}:{os.minor(device)} / /mnt rw - fuse.sshfs host:/ rw\n"
    (tmp_path / "mountinfo").write_text(f"39 1 0:9999 / / rw - ext4 /dev/sda rw\n{line}", encoding="utf-8")
    monkeypatch.setattr(lock, "MOUNTS", tmp_path / "mountinfo")


@pytest.mark.parametrize("how", ["flock", "no_flock", "fuse"])
def test_an_owner_on_another_machine_is_known_by_its_beat(
    tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    """Whether or not flock was had, which may be this machine's alone; whatever number the file has from there."""
    if how != "flock":
        request.getfixturevalue(how)
    elsewhere(tmp_path, **({"inode": 2} if how == "fuse" else {}))
    ended, said = threading.Event(), []

    def beat() -> None:
        while not ended.wait(0.02):
            os.utime(tmp_path / OWNER)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(BigqaError, match="in use by a run on node7"):
            held(tmp_path, said.append).__enter__()
    finally:
        ended.set()
        beating.join()
    assert len(said) == 1 and "node7" in said[0]
    with held(tmp_path):  # it stands still
        pass


def test_a_copy_from_another_machine_is_free_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.time, "sleep", never)
    (tmp_path / "run").mkdir()
    elsewhere(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with held(tmp_path / "copy"):
        pass


def test_of_an_owner_in_another_container_flock_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process numbers mean nothing here, but its kernel is ours."""
    monkeypatch.setattr(lock.time, "sleep", never)
    elsewhere(tmp_path, boot=lock.boot(), room="another")
    with held(tmp_path):
        pass


def test_of_an_owner_by_another_mount_flock_does_not_tell(tmp_path: Path) -> None:
    """Two mounts of a folder by FUSE, on one machine: flock is each one's own, and the process can be seen."""
    elsewhere(tmp_path, boot=lock.boot(), mount=1)
    with pytest.raises(BigqaError, match="in use by a run on node7"):
        held(tmp_path).__enter__()


def test_numbers_that_last_are_told_from_a_mounts_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    with (tmp_path / "file").open("w") as file:
        assert lock._number_of(file.fileno()) == os.fstat(file.fileno()).st_ino
        request.getfixturevalue("fuse")
        assert lock._number_of(file.fileno()) == 0
        text = lock.MOUNTS.read_text(encoding="utf-8")
        lock.MOUNTS.write_text(text.replace("fuse.sshfs", "fuseblk"), encoding="utf-8")  # a disk
        assert lock._number_of(file.fileno()) == os.fstat(file.fileno()).st_ino
        monkeypatch.setattr(lock, "MOUNTS", tmp_path / "no-such-file")
        assert lock._number_of(file.fileno()) == os.fstat(file.fileno()).st_ino


def test_an_open_file_that_is_kept_under_another_name_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS and FUSE do: it goes when it is closed."""
    kept, unlink, close = tmp_path / "run" / ".nfs0001", Path.unlink, os.close

    def renamed(path: Path, missing_ok: bool = False) -> None:
        path.rename(kept) if path.name == LOCK else unlink(path, missing_ok=missing_ok)

    def closed(file: int) -> None:
        close(file)
        unlink(kept, missing_ok=True)

    with held(tmp_path / "run"):
        monkeypatch.setattr(Path, "unlink", renamed)
        monkeypatch.setattr(lock.os, "close", closed)
    monkeypatch.undo()
    assert not (tmp_path / "run").exists()


def test_an_owner_that_was_silent_for_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.time, "sleep", never)
    elsewhere(tmp_path)
    before = (tmp_path / OWNER).stat().st_mtime - lock.OLD_S - 5
    os.utime(tmp_path / OWNER, (before, before))
    with held(tmp_path):
        pass


@pytest.mark.usefixtures("no_flock")
def test_of_two_that_would_take_over_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def while_it_looks(*_: Any) -> bool:
        elsewhere_token = json.loads((tmp_path / OWNER).read_text(encoding="utf-8")) | {"token": "quicker"}
        (tmp_path / OWNER).write_text(json.dumps(elsewhere_token), encoding="utf-8")
        return False

    elsewhere(tmp_path)
    monkeypatch.setattr(lock, "_beats", while_it_looks)
    with pytest.raises(BigqaError, match="in use by a run on node7"):
        held(tmp_path).__enter__()


def test_an_owner_that_was_taken_for_dead_ends(tmp_path: Path) -> None:
    owner, _ = started(tmp_path)
    found = json.loads((tmp_path / OWNER).read_text(encoding="utf-8"))
    (tmp_path / "new").write_text(json.dumps(found | {"host": "node7", "token": "theirs"}), encoding="utf-8")
    (tmp_path / "new").replace(tmp_path / OWNER)
    _, said = owner.communicate(timeout=60)
    assert owner.returncode == 1 and "taken over by a run on node7" in said and len(said.splitlines()) == 1
    assert "node7" in (tmp_path / OWNER).read_text(encoding="utf-8")  # not its to remove


def test_a_run_and_its_resume_and_another_start(tmp_path: Path) -> None:
    """The words of a command, in the place of a launcher and in that of a worker."""
    run = tmp_path / "run"
    words = {"model": "tiny", "train_file": FOLDER / "train.json", "out": run}
    with held(run):
        settings = make_settings(**words)
        begin(settings, {})
    owner, _ = started(run)
    for options, resume in ((words, None), ({}, run)):
        with pytest.raises(BigqaError, match=f"in use by a run on .*, process {owner.pid}, since"):
            settings_from(options, resume)
    done = train_here("--resume", run)
    assert done.returncode == 1 and f"process {owner.pid}" in done.stderr and len(done.stderr.splitlines()) == 1
    owner.kill()
    owner.communicate()
    assert settings_from({}, run).out == run
    for name in ("config.json", "plan.json", "versions.json"):  # killed before the run had begun
        (run / name).unlink()
    assert {path.name for path in run.iterdir()} == FILES and settings_from(words, None).out == run
