"""A lock that a killed build left behind goes; one that is held stays."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from bigqa.engine.extensions import drop_stale_locks

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
    sharding._deepspeed()
    assert not lock.exists()
