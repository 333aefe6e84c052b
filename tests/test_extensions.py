"""A lock that a killed build left behind goes; one that is held stays; compilers are found, or their lack is a line."""

import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from commands import LIMIT_S
from torch.utils.file_baton import FileBaton

from bigqa.engine import extensions
from bigqa.engine.extensions import drop_stale_locks, make_ready

BUILD = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "part").mkdir()
    return tmp_path / "part" / "lock"


def test_a_killed_builds_lock_goes_and_a_living_ones_stays(lock: Path) -> None:
    build = subprocess.Popen([sys.executable, "-c", BUILD, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert build.stdout is not None and build.stdout.readline() == "building\n"
        drop_stale_locks()
        assert lock.exists()
    finally:
        build.send_signal(signal.SIGKILL)
        build.communicate()
    assert lock.exists()
    drop_stale_locks()
    assert not lock.exists()


def test_a_lock_that_may_be_another_machines_stays_for_as_long_as_a_build_takes(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    lock.touch()
    drop_stale_locks()
    assert lock.exists()
    os.utime(lock, (0, 0))
    drop_stale_locks()
    assert not lock.exists()


def test_a_build_of_this_process_keeps_its_lock(lock: Path) -> None:
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    drop_stale_locks()
    assert lock.exists()
    baton.release()


def test_deepspeed_is_not_waited_for_behind_a_stale_lock(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    from bigqa.engine import sharding

    lock.touch()
    sharding._deepspeed("cpu")
    assert not lock.exists()


def test_a_run_on_the_cpu_leaves_a_card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed would place its model on the card, and there is no NCCL for what is in host memory."""
    pytest.importorskip("deepspeed")
    from bigqa.engine import sharding

    made: list[str] = []
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: made.append(backend))
    monkeypatch.setenv("LOCAL_RANK", "0")
    sharding._deepspeed("cpu")
    sharding._need_group("cpu")
    assert (os.environ["DS_ACCELERATOR"], made) == ("cpu", ["gloo"])


def test_ninja_is_found_beside_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Python is called by its path, as `make` does, its folder is not on PATH."""
    (tmp_path / "ninja").touch(mode=0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    make_ready()
    assert os.environ["PATH"] == f"/usr/bin:/bin:{tmp_path}"
    make_ready()
    assert os.environ["PATH"] == f"/usr/bin:/bin:{tmp_path}"


def test_a_compiler_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    # Not in this process: torch would compile the parts again for whoever wants them here, under other names.
    apart = get_context("fork").Process(target=extensions.main)
    apart.start()
    apart.join(LIMIT_S)
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("bigqa: ")]
    assert len(said) == 1 and "are not compiled (" in said[0]
