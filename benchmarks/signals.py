"""SIGINT, SIGTERM and SIGHUP at random moments of whole runs. Run: `python -m benchmarks.signals`; it is resumable.

In: how many processes, and moments. Out: `runs/signals.jsonl`, one line for each run that was stopped; what is there is
not run again. A run from its first tenth of a second to its last: imports, planning, features, steps, checkpoints,
scoring. However it is stopped it ends in time, by the code of the signal, in a word; nothing runs on, nothing is
half-written, its folder is free, and what it says that it saved is there. `--table` runs nothing: it prints what came
of them. Moments and limits are in processor time of all that a run has started: a busy machine's clock says little.
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.common import REPORTS
from bigqa.engine.loop.checkpoint import load_newest
from bigqa.lock import FILES, held
from bigqa.sample import FOLDER
from bigqa.versions import commit

FILE = REPORTS / "signals.jsonl"
COUNTS, MOMENTS, SEED = (1, 2), 50, 21
"""Processes of a run; moments of each; what they are drawn from."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FIRST_S, LIMIT_S = 0.1, 30.0
"""The first moment, and the longest way to the end."""
HANGS_S = 600.0
"""By the clock, after the signal: nothing comes any more."""
MARK = "BIGQA_TEST_SIGNALS"
WORDS = ["--model", "tiny", "--device", "cpu", "--train-file", str(FOLDER / "train.json"), "--limit", "60"]
WORDS += ["--dev-file", str(FOLDER / "dev.json"), "--max-steps", "20", "--save-every", "4", "--global-batch", "4"]
RUNS: tuple[tuple[str, ...], ...] = ((), ("--strategy", "lora"))
"""In turn: planned, and with something to merge at the end."""
SAVED = re.compile(r"saved at step (\d+)")
NOTHING = ("nothing to save", "all steps are done and saved", "after the last step, which is saved", "all is written")
NOTHING += ("the model is written",)
POLL_S = 0.02
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "BIGQA_THREADS", "BIGQA_WORKERS"), "1")
"""Of each process: threads that wait for each other by spinning would be most of the time that is counted."""


class Stopped(NamedTuple):
    """One run that was stopped, or that had ended before. Seconds are of processor time, but for `took_s`."""

    count: int
    moment: int
    signal: str
    at_s: float
    code: int
    spent_s: float
    """From the signal to the end."""
    took_s: float
    word: str
    """The last of its words, or its last line where it has said none."""
    faults: tuple[str, ...]
    commit: str

    @property
    def kind(self) -> str:
        """What it came to, in a few words."""
        if self.code == 0:
            return "had ended"
        return "saved" if SAVED.search(self.word) else self.word.removeprefix("bigqa: ")[:60]


def heard() -> None:
    """Undo what is inherited from a shell that runs this in the background: an ignored SIGINT."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(run: Path, count: int, *more: str) -> "subprocess.Popen[str]":
    """Start a run with a cache of its own, so that its features are made."""
    return subprocess.Popen(
        [sys.executable, "-m", "bigqa.cli", "train", *WORDS, "--num-processes", str(count), "--out", str(run), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | THREADS | {"BIGQA_CACHE": str(run.with_suffix(".cache")), MARK: run.name},
        preexec_fn=heard,
        start_new_session=True,
    )


def spent(pid: int) -> float:
    """Return the processor time of a process and of all that it has started."""
    total = 0.0
    try:
        first = psutil.Process(pid)
        for one in (first, *first.children(recursive=True)):
            try:
                total += sum(one.cpu_times()[:4])
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total


def spent_by_children() -> float:
    """Return the processor time of all that this process has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


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


def stopped(run: Path, count: int, moment: int, at_s: float) -> Stopped:
    """Start a run and stop it when it has spent so much processor time."""
    number, before = SIGNALS[moment % 3], spent_by_children()
    started = start(run, count, *RUNS[moment % 2])
    while (so_far := spent(started.pid)) < at_s and started.poll() is None:
        time.sleep(POLL_S)
    began = time.monotonic()
    started.send_signal(number)
    try:
        said, _ = started.communicate(timeout=HANGS_S)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        said, _ = started.communicate()
    took_s, more_s = time.monotonic() - began, spent_by_children() - before - so_far
    word = last_word(said)
    faults = [*faults_of_end(run, number, started.returncode, more_s, word, said), *faults_of_folder(run, word)]
    figures = (round(so_far, 2), started.returncode, round(more_s, 2), round(took_s, 2))
    return Stopped(count, moment, number.name, *figures, word[:160], tuple(faults), commit() or "")


def last_word(said: str) -> str:
    """Return the last line about what is saved; else the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    told = [line for line in lines if any(one in line for one in NOTHING) or SAVED.search(line)]
    return (told or lines or [""])[-1].strip()


def faults_of_end(run: Path, number: int, code: int, more_s: float, word: str, said: str) -> Iterator[str]:
    """Say what of a run's end is not as it must be."""
    is_whole = code == 0 and (run / "report.json").is_file()
    if not is_whole and code != 128 + number:
        yield f"exit code {code}"
    if more_s > LIMIT_S:
        yield f"{more_s:.0f} s"
    is_told = any(one in word for one in NOTHING) or SAVED.search(word)
    if not is_whole and not is_told and not (run / "report.json").is_file():
        yield "no word"
    if "Traceback" in said or "Exception ignored" in said:
        yield f"a traceback: {said[-2000:]}"
    if left := left_of(run):
        yield f"left running: {left}"


def faults_of_folder(run: Path, word: str) -> Iterator[str]:
    """Say what of what a run leaves behind is not as it must be."""
    around = [*run.parent.glob(f"{run.name}.cache/**/*.tmp"), *run.glob("**/*.tmp"), *run.parent.glob(".*.tmp")]
    if around:
        yield f"half-written: {[path.name for path in around]}"
    names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    if names & (FILES | {".stop-requested", ".ended"}) or (run.is_dir() and not names):
        yield f"left in the folder: {sorted(names)}"
    if saved := SAVED.search(word):
        amiss: list[str] = []
        checkpoint = load_newest(run / "checkpoints", amiss.append)
        yield from amiss
        if checkpoint is None or checkpoint.step != int(saved[1]):
            yield f"not saved: step {saved[1]}"
    with held(run):
        pass


def whole_s(folder: Path, count: int) -> float:
    """Return the processor time of a run that nothing stops."""
    before = spent_by_children()
    started = start(folder / f"whole-{count}", count)
    said, _ = started.communicate()
    if started.returncode:
        raise RuntimeError(said[-2000:])
    return spent_by_children() - before


def read(file: Path = FILE) -> list[Stopped]:
    """Return the runs that are there."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [Stopped(**json.loads(line) | {"faults": tuple(json.loads(line)["faults"])}) for line in lines]


def stop_at_moments(file: Path, count: int, moments: int, seed: int = SEED) -> Iterator[Stopped]:
    """Stop runs at the moments that are not in the file yet, and write each one down."""
    there = {one.moment for one in read(file) if one.count == count}
    wanted = [moment for moment in range(moments) if moment not in there]
    with tempfile.TemporaryDirectory(prefix="bigqa-signals-") as name:
        last_s = whole_s(Path(name), count) if wanted else 0.0
        for moment in wanted:
            at_s = random.Random(f"{seed} {count} {moment}").uniform(FIRST_S, last_s)
            one = stopped(Path(name) / f"run-{moment}-{uuid.uuid4().hex[:8]}", count, moment, at_s)
            with file.open("a", encoding="utf-8") as written:
                written.write(json.dumps(one._asdict(), ensure_ascii=False) + "\n")
            yield one


def line_of(one: Stopped) -> str:
    """Return one run as a line."""
    end = f"{one.count} x {one.at_s:5.1f} s {one.signal:7} -> {one.code:3} in {one.spent_s:4.1f} s"
    return f"{end}: {' | '.join(one.faults) or one.word[:100]}"


def table(runs: list[Stopped]) -> str:
    """Return what came of runs, as Markdown."""
    rows = [
        "| processes | moments | saved | nothing to save | had ended | faults | longest |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for count in sorted({one.count for one in runs}):
        some = [one for one in runs if one.count == count]
        kinds = Counter(one.kind if one.kind in ("saved", "had ended") else "other" for one in some)
        faults = sum(bool(one.faults) for one in some)
        figures = (len(some), kinds["saved"], kinds["other"], kinds["had ended"], faults)
        longest = max(one.spent_s for one in some)
        rows.append(f"| {count} | {' | '.join(map(str, figures))} | {longest:.1f} s |")
    return "\n".join(rows)


def main(words: list[str] | None = None) -> Any:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, choices=COUNTS, action="append")
    parser.add_argument("--moments", type=int, default=MOMENTS)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--table", action="store_true", help="run nothing; print what came of the runs that are there")
    asked = parser.parse_args(words)
    for count in () if asked.table else asked.count or COUNTS:
        for one in stop_at_moments(asked.out, count, asked.moments):
            print(line_of(one), flush=True)
    print(table(read(asked.out)))


if __name__ == "__main__":
    main()
