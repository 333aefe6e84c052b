"""Processes that a launcher starts: ranks, how they end and what that says, a stop that starts nothing anew.

In the place of the trainer are programs of a few lines: what is told to them, and what their ends mean.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import runs, until
from small_runs import options

from bigqa.errors import BigqaError
from bigqa.lock import held
from bigqa.plan.ladder import AGAIN, switches_of
from bigqa.run import launcher, workers
from bigqa.run.folder import begin
from bigqa.run.workers import LOST_PEER, Workers
from bigqa.settings import make_settings

COUNTS = """
import os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["RUN"])
rank = os.environ.get("RANK", "0")
starts = len(list(folder.glob(f"start-{rank}-*")))
(folder / f"start-{rank}-{starts}").write_text(" ".join(sys.argv[1:]))
"""
"""Leaves a file for each start of each rank."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has begun, with a ladder of one rung or more."""
    folder = tmp_path / "run"
    begin(make_settings(**options(folder)), {})
    ladder = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    axes = ladder["strategy"] or {"precision": "fp32", "device": "cpu"}
    ladder["ladder"] = [{"name": "smaller", "strategy": axes, "micro_batch": 2}]
    (folder / "config.json").write_text(json.dumps(ladder), encoding="utf-8")
    monkeypatch.setenv("RUN", str(folder))
    return folder


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a program in the place of the trainer."""

    def put(code: str) -> Path:
        file = tmp_path / "trainer.py"
        file.write_text(COUNTS + code, encoding="utf-8")
        monkeypatch.setattr(launcher, "TRAIN_FILE", file)
        return file

    return put


def heard() -> None:
    """Undo what tests inherit that a shell runs in the background: an ignored SIGINT."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def starts(run: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in run.glob("start-*")}


def test_each_process_knows_its_place(tmp_path: Path) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    code = f"import os, sys; found = [os.environ.get(name) for name in '{names}'.split()]; "
    code += "print(*found, file=open(sys.argv[1] + found[0], 'w'))"
    with held(tmp_path / "run") as lock:
        assert Workers(lock, 2).run([sys.executable, "-S", "-c", code, str(tmp_path / "rank")]) == 0
    first, second = ((tmp_path / f"rank{rank}").read_text(encoding="utf-8").split() for rank in range(2))
    assert first[:5] == ["0", "0", "2", "2", "127.0.0.1"] and second[:5] == ["1", "1", "2", "2", "127.0.0.1"]
    assert first[5] == second[5] and int(first[5]) > 1023


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("0", "0"), 0),
        (("3", "0"), 3),
        ((str(LOST_PEER), "3"), 3),  # what lost its peer follows from the other's end
        ((str(LOST_PEER), "9, 0"), -9),
        (("0", str(LOST_PEER)), LOST_PEER),
    ],
)
def test_the_first_that_failed_says_how_the_run_ended(tmp_path: Path, codes: tuple[str, str], expected: int) -> None:
    """By an exit code, or by the signal that killed it."""
    ends = [f"os.kill(0 or os.getpid(), {code[0]})" if "," in code else f"sys.exit({code})" for code in codes]
    code = f"import os, sys; {ends[0]} if os.environ['RANK'] == '0' else {ends[1]}"
    with held(tmp_path / "run") as lock:
        assert Workers(lock, 2).run([sys.executable, "-S", "-c", code]) == expected


def test_who_waits_for_one_that_failed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hears is asked, one that does not is killed, with what it has started; neither hides the cause."""
    monkeypatch.setattr(workers, "PEERS_S", 0.2)
    monkeypatch.setattr(workers, "KILLED_S", 0.6)
    deaf = "import signal, subprocess, sys, time; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); "
    deaf += "print(subprocess.Popen(['sleep', '60']).pid, file=open(sys.argv[1], 'w'), flush=True); time.sleep(60)"
    code = f"import os, sys; exec({deaf!r}) if os.environ['RANK'] == '0' else sys.exit(5)"
    with held(tmp_path / "run") as lock:
        found = Workers(lock, 2)
        assert found.run([sys.executable, "-S", "-c", code, str(tmp_path / "pid")]) == 5
        assert not found.told
    below = (tmp_path / "pid").read_text(encoding="utf-8").strip()
    until(lambda: not (below and runs(int(below))))


@pytest.mark.parametrize(
    ("end", "code", "rungs"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 0, 1),
        (f"os._exit({AGAIN})", 0, 0),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, 0),
        ("os.kill(os.getpid(), signal.SIGABRT)", 134, 0),
        ("os._exit(1)", 1, 0),
        ("os._exit(137)", 137, 0),
    ],
)
def test_only_a_killed_worker_is_taken_for_a_lack_of_memory(
    run: Path, trainer: Callable[[str], Path], capfd: pytest.CaptureFixture[str], end: str, code: int, rungs: int
) -> None:
    """Of two processes: the second ends without a word, and the first has lost it."""
    trainer(f"if starts == 0: {end} if rank == '1' else os._exit({LOST_PEER})")
    assert launcher.launch(["--some", "words"], run, 2, resume=True) == code
    assert len(switches_of(run)) == rungs
    again = code == 0
    assert len(starts(run)) == (4 if again else 2)
    if again:
        assert starts(run)["start-1-1"] == f"--resume {run}" and starts(run)["start-1-0"] == "--some words"
    said = capfd.readouterr().err
    assert ("SIGSEGV without a word" in said) is ("SIGSEGV" in end)
    assert ("A worker was killed" in said) is bool(rungs)


def test_a_new_run_is_not_started_in_a_folder_that_has_got_one(run: Path, trainer: Callable[[str], Path]) -> None:
    trainer("")
    with pytest.raises(BigqaError, match="already holds a run"):
        launcher.launch([], run, 1, resume=False)
    assert not starts(run)


DRIVER = """
import sys
from pathlib import Path
from bigqa import interrupts
interrupts.listen()
from bigqa.run import launcher
launcher.TRAIN_FILE = Path(sys.argv[1])
sys.exit(launcher.launch([], Path(sys.argv[2]), int(sys.argv[3]), resume=True))
"""
STOPS = """
from bigqa import interrupts
interrupts.listen()
taken = []
with interrupts.taken_by(taken.append):
    (folder / f"ready-{rank}").touch()
    while not taken: time.sleep(0.01)
    END
"""


@pytest.mark.parametrize(
    ("count", "number", "code"),
    [(2, signal.SIGINT, 143), (2, signal.SIGTERM, AGAIN), (1, signal.SIGHUP, 0), (1, signal.SIGINT, 137)],
    ids=["two that save", "two that step down", "one that has finished", "one that dies"],
)
def test_a_stop_starts_nothing_anew(
    run: Path, trainer: Callable[[str], Path], count: int, number: signal.Signals, code: int
) -> None:
    """However its workers end: the next rung is not for a run that was asked to stop."""
    file = trainer(STOPS.replace("END", "os.kill(os.getpid(), 9)" if code == 137 else f"os._exit({code})"))
    started = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(file), str(run), str(count)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(launcher.__file__).parents[2])},
        preexec_fn=heard,
    )
    until(lambda: len(list(run.glob("ready-*"))) == count, started)
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 128 + number, said
    assert len(starts(run)) == count and switches_of(run) == []
    assert "Stopping" in said and "Traceback" not in said
    assert (f"bigqa train --resume {run}" in said) is (code == AGAIN)
    assert ("was over before" in said) is (code == 0)


ALONE = """
from bigqa import interrupts
interrupts.listen()
from bigqa.run.launcher import watch_launcher
watch_launcher()
taken = []
with interrupts.taken_by(taken.append):
    (folder / f"ready-{rank}").write_text(str(os.getpid()))
    while not taken or not (folder / "saves").exists(): time.sleep(0.01)
    (folder / f"saved-{rank}").write_text(str(taken[0]))
"""


def test_workers_save_and_end_when_their_launcher_is_killed(run: Path, trainer: Callable[[str], Path]) -> None:
    """Until then they hold the folder."""
    file = trainer(ALONE)
    started = subprocess.Popen([sys.executable, "-c", DRIVER, str(file), str(run), "2"], stderr=subprocess.DEVNULL)
    until(lambda: all((run / f"ready-{rank}").exists() for rank in range(2)), started)
    until(lambda: all((run / f"ready-{rank}").read_text() for rank in range(2)), started)
    pids = [int((run / f"ready-{rank}").read_text()) for rank in range(2)]
    started.kill()
    started.wait()
    with pytest.raises(BigqaError, match="in use by a run"):
        held(run).__enter__()
    (run / "saves").touch()
    until(lambda: not any(map(runs, pids)))
    assert [(run / f"saved-{rank}").read_text() for rank in range(2)] == ["15", "15"]
    with held(run):
        pass


@pytest.mark.parametrize(
    ("words", "written", "count"),
    [
        (["accelerate", "launch", "--num_processes", "3", "x.py"], None, 3),
        (["accelerate", "launch", "--num-processes=2", "x.py"], 4, 2),
        (["accelerate", "launch", "x.py"], 4, 4),
        (["accelerate", "launch", "x.py"], None, None),
    ],
)
def test_how_many_accelerate_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], written: int | None, count: int | None
) -> None:
    """In its own words, or in what `accelerate config` has written."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    if written is not None:
        (tmp_path / "accelerate").mkdir()
        (tmp_path / "accelerate" / "default_config.yaml").write_text(f"num_processes: {written}\n", encoding="utf-8")
    assert launcher._asked_of_accelerate(words) == count


def test_a_second_ctrl_c_ends_all_at_once(run: Path, trainer: Callable[[str], Path]) -> None:
    file = trainer("(folder / f'ready-{rank}').touch(); time.sleep(60)")  # it does not listen
    started = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(file), str(run), "2"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    until(lambda: len(list(run.glob("ready-*"))) == 2, started)
    started.send_signal(signal.SIGINT)
    assert started.stderr is not None
    until(lambda: "Stopping" in started.stderr.readline(), started)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130 and said == "bigqa: stopped at once\n"
    with held(run):  # nothing is left that has it
        pass
