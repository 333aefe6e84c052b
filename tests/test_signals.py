"""SIGINT, SIGTERM and SIGHUP at random moments of whole runs, in one process and in two: slow, and it reports.

A run from its first tenth of a second to its last: imports, planning, features, steps, checkpoints, scoring. However it
is stopped it ends in time, by the code of the signal, in a word; nothing runs on, nothing is half-written, its folder
is free, and what it says that it saved is there. `python -m pytest -m slow -s tests/test_signals.py` prints each one.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bigqa.engine.loop.checkpoint import load_newest
from bigqa.lock import FILES, held
from bigqa.sample import FOLDER

MOMENTS = int(os.environ.get("BIGQA_SIGNALS", "50"))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FIRST_S, LIMIT_S = 0.1, 30.0
MARK = "BIGQA_TEST_SIGNALS"
WORDS = ["--model", "tiny", "--device", "cpu", "--train-file", str(FOLDER / "train.json"), "--limit", "60"]
WORDS += ["--dev-file", str(FOLDER / "dev.json"), "--max-steps", "30", "--save-every", "4", "--global-batch", "4"]
RUNS: tuple[tuple[str, ...], ...] = ((), ("--strategy", "lora"))
"""In turn: planned, and with something to merge at the end."""
SAVED = re.compile(r"saved at step (\d+)")
IDLE_S = 6.0
"""Of a whole run on two idle cores: where it takes longer, so does what comes before the program's first line."""
NOTHING = ("nothing to save", "all steps are done and saved", "after the last step, which is saved", "all is written")
NOTHING += ("the model is written",)


@dataclass
class Stopped:
    """One run that was stopped, or that had ended before."""

    at_s: float
    number: signal.Signals
    code: int
    took_s: float
    said: str

    @property
    def last(self) -> str:
        """Its last word."""
        lines = [line for line in self.said.splitlines() if any(n in line for n in NOTHING) or SAVED.search(line)]
        return lines[-1] if lines else ""


def heard() -> None:
    """Undo what tests inherit that a shell runs in the background: an ignored SIGINT."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(run: Path, count: int, *more: str) -> "subprocess.Popen[str]":
    """Start a run with a cache of its own, so that its features are made."""
    environment = os.environ | {"BIGQA_CACHE": str(run.with_suffix(".cache")), MARK: run.name}
    return subprocess.Popen(
        [sys.executable, "-m", "bigqa.cli", "train", *WORDS, "--num-processes", str(count), "--out", str(run), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=heard,
        start_new_session=True,
    )


def left_of(run: Path) -> list[int]:
    """Return the processes that carry a run's mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == run.name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def stopped(run: Path, count: int, at_s: float, number: signal.Signals, *more: str) -> Stopped:
    started = start(run, count, *more)
    time.sleep(at_s)
    before = time.monotonic()
    started.send_signal(number)
    try:
        said, _ = started.communicate(timeout=4 * LIMIT_S)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    return Stopped(at_s, number, started.returncode, time.monotonic() - before, said)


def faults_of(run: Path, one: Stopped) -> list[str]:
    """Say what is not as it must be."""
    found = []
    finished = one.code == 0 and (run / "report.json").is_file()
    if not finished and one.code != 128 + one.number:
        found.append(f"exit code {one.code}")
    if one.took_s > LIMIT_S:
        found.append(f"{one.took_s:.0f} s")
    if not finished and not one.last and not (run / "report.json").is_file():
        found.append("no word")
    if "Traceback" in one.said or "Exception ignored" in one.said:
        found.append("a traceback")
    if left := left_of(run):
        found.append(f"left running: {left}")
    around = [*run.parent.glob(f"{run.name}.cache/**/*.tmp"), *run.glob("**/*.tmp"), *run.parent.glob(".*.tmp")]
    if around:
        found.append(f"half-written: {around}")
    names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    if names & (FILES | {".stop-requested", ".ended"}) or (run.is_dir() and not names):
        found.append(f"left in the folder: {sorted(names)}")
    if saved := SAVED.search(one.last):
        checkpoint = load_newest(run / "checkpoints", found.append)
        if checkpoint is None or checkpoint.step != int(saved[1]):
            found.append(f"not saved: step {saved[1]}")
    with held(run):
        pass
    return found


def whole(run: Path, count: int) -> float:
    """Return the seconds of a run that nothing stops."""
    before = time.monotonic()
    started = start(run, count)
    said, _ = started.communicate(timeout=20 * LIMIT_S)
    assert started.returncode == 0, said
    return time.monotonic() - before


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_signals_at_random_moments(tmp_path: Path, count: int) -> None:
    last_s = min(whole(tmp_path / f"whole-{turn}", count) for turn in range(2))  # the first reads what is on disk
    rng, faults, took, words = random.Random(int(os.environ.get("BIGQA_SEED", "21"))), [], [], []
    for moment in range(MOMENTS):
        run = tmp_path / f"run-{moment}-{uuid.uuid4().hex[:8]}"
        at_s = rng.uniform(FIRST_S * max(1.0, last_s / IDLE_S), last_s)
        one = stopped(run, count, at_s, SIGNALS[moment % 3], *RUNS[moment % 2])
        wrong = faults_of(run, one)
        faults += [f"{one.number.name} at {one.at_s:.1f} s: {', '.join(wrong)}\n{one.said}"] if wrong else []
        took.append(one.took_s)
        words.append("saved" if SAVED.search(one.last) else one.last.partition("bigqa: ")[2][:60] or "finished")
        how = f"{at_s:5.1f} s {one.number.name:8} -> {one.code:3} in {one.took_s:4.1f} s"
        print(f"{count} x {how}: {one.last[:110]}", flush=True)
    counts = ", ".join(f"{words.count(word)} {word!r}" for word in sorted(set(words)))
    print(f"{count} processes, a run of {last_s:.1f} s, {MOMENTS} moments: {counts}; longest {max(took):.1f} s")
    assert not faults, "\n".join(faults)
