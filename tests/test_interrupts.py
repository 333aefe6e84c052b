"""Signals to a program: whatever its main thread does, a clear word and a code; and what is handed to someone else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import until

BEGIN = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from bigqa import files, interrupts
interrupts.listen()
interrupts.say_when_left("nothing to save")
folder = Path(sys.argv[1])
def ready(): print("ready", flush=True)
"""
WRITES = """
with files.atomic_folder(folder / "model") as temporary:
    (temporary / "half").touch()
    with files.atomic_path(folder / "file") as other:
        ready()
        {waits}
"""
IN_A_LIBRARY = "import ctypes; [ctypes.CDLL(None).usleep(999999) for _ in iter(int, 1)]"
SWALLOWS = "while True:\n            try: time.sleep(60)\n            except BaseException: pass"


def program(folder: Path, code: str, ignored: bool = False) -> "subprocess.Popen[str]":
    def reset() -> None:  # tests that a shell runs in the background inherit an ignored SIGINT
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)

    command = [sys.executable, "-c", BEGIN + code, str(folder)]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=reset, start_new_session=True
    )
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize(
    ("number", "waits"),
    [(signal.SIGINT, "time.sleep(60)"), (signal.SIGTERM, IN_A_LIBRARY), (signal.SIGHUP, SWALLOWS)],
    ids=["SIGINT", "SIGTERM in a library", "SIGHUP where errors are swallowed"],
)
def test_a_program_leaves_with_a_word_and_nothing_half_written(
    tmp_path: Path, number: signal.Signals, waits: str
) -> None:
    started = program(tmp_path, WRITES.format(waits=waits))
    assert len(list(tmp_path.iterdir())) == 2
    started.send_signal(number)
    out, said = started.communicate(timeout=60)
    assert (started.returncode, out, said) == (128 + number, "", "bigqa: nothing to save\n")
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_of_a_run_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    started = program(tmp_path, "ready(); time.sleep(60)")
    started.send_signal(signal.SIGTERM)
    assert started.communicate(timeout=60) == ("", "") and started.returncode == 143


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    started = program(tmp_path, "ready(); time.sleep(60)", ignored=True)
    for number in (signal.SIGHUP, signal.SIGINT):
        started.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.3)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=60)
    assert started.returncode == 143


TAKES = """
taken = []
with interrupts.taken_by(taken.append):
    ready()
    while len(taken) < 1: time.sleep(0.01)
    print("taken", *taken, flush=True)
    time.sleep(60)
"""


def test_the_first_is_taken_and_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    started = program(tmp_path, TAKES)
    assert started.stdout is not None
    started.send_signal(signal.SIGTERM)
    assert started.stdout.readline() == f"taken {int(signal.SIGTERM)}\n"
    for number in (signal.SIGTERM, signal.SIGHUP):  # a scheduler and a launcher both send it
        started.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.3)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (143, "bigqa: stopped at once\n")


RAISES = """
try:
    with interrupts.raised():
        ready()
        time.sleep(60)
except KeyboardInterrupt:
    print("raised", interrupts.first(), interrupts.was_raised())
"""


def test_what_ends_its_own_processes_is_interrupted(tmp_path: Path) -> None:
    started = program(tmp_path, RAISES)
    started.send_signal(signal.SIGHUP)
    out, said = started.communicate(timeout=60)
    assert (out, said, started.returncode) == ("raised 1 True\n", "", 0)


STARTS = """
child = '''
import sys, time
print("child", flush=True)
sys.stdin.readline()
from bigqa import interrupts
interrupts.listen()
time.sleep(60)
'''
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
with interrupts.held_back():
    process = subprocess.Popen([sys.executable, "-c", child], **pipes)
process.stdout.readline()
process.send_signal(signal.SIGINT)
process.send_signal(signal.SIGTERM)
time.sleep(0.2)
assert process.poll() is None
process.stdin.write(b"go on\\n")
process.stdin.flush()
ready()
print(process.wait(60))
"""


def test_until_a_program_listens_its_signals_are_held_back(tmp_path: Path) -> None:
    started = program(tmp_path, STARTS)
    out, said = started.communicate(timeout=60)
    assert int(out) in (130, 143) and said == "bigqa: interrupted\n"


FORKS = """
if os.fork() == 0:
    signal.signal(signal.SIGINT, lambda *_: None)  # as a pool's worker may
    print("ready" if not interrupts.listens() else "listens", flush=True)
    time.sleep(60)
(folder / "child").write_text("there")
os.wait()
time.sleep(60)
"""


def test_a_forks_signals_are_its_own(tmp_path: Path) -> None:
    started = program(tmp_path, FORKS)
    until(lambda: (tmp_path / "child").exists(), started)
    [child] = [int(pid) for pid in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()]
    os.kill(child, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.3)
    os.kill(child, signal.SIGKILL)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (143, "bigqa: nothing to save\n")
