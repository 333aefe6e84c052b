"""Forks of a process whose threads have worked: they end, with it at the latest, and their results come in order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run, runs, until

PROGRAM = """
import torch
from bigqa.memory.forks import in_forks
threads = torch.get_num_threads()
torch.ones(2**22).mul(2)
torch.set_num_threads(1)
torch.set_num_threads(threads)
torch.ones(2**22).mul(2)
print(in_forks(lambda number: int(torch.full((2**22,), float(number)).mul(2)[-1]), [1, 2, 3]))
"""
SLEEPS = """
import os, sys, time
from pathlib import Path
from bigqa.memory.forks import in_forks
def work(number):
    Path(sys.argv[1], str(number)).write_text(str(os.getpid()))
    time.sleep(1000)
in_forks(work, [1, 2])
"""


def test_forks_do_not_wait_for_threads_that_they_do_not_have() -> None:
    done = run([sys.executable, "-c", PROGRAM], BIGQA_WORKERS="3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[2,", "4,", "6]"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_forks_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", SLEEPS, str(tmp_path)], env=os.environ | {"BIGQA_WORKERS": "2"})
    until(lambda: all(_pid(tmp_path / name) for name in "12"), program)
    program.kill()
    program.wait()
    until(lambda: not any(runs(_pid(tmp_path / name)) for name in "12"))


def _pid(file: Path) -> int:
    return int(file.read_text() or "0") if file.is_file() else 0
