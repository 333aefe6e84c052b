"""SIGINT, SIGTERM and SIGHUP at random moments of whole runs: those that are committed, and others where it is slow.

`python -m benchmarks.signals` goes on with them; `python -m pytest -m slow -s tests/test_signals.py` prints each one.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from benchmarks.signals import (
    COUNTS,
    LIMIT_S,
    Stopped,
    faults_of_end,
    faults_of_folder,
    last_word,
    line_of,
    read,
    table,
)
from benchmarks.signals import stop_at_moments as stop

MOMENTS = int(os.environ.get("BIGQA_SIGNALS", "50"))


def test_the_committed_runs_ended_as_they_must() -> None:
    runs = read()
    assert {one.count for one in runs} == set(COUNTS)
    assert [line_of(one) for one in runs if one.faults] == []
    assert all(one.code in (0, 128 + signal.Signals[one.signal]) and one.spent_s < LIMIT_S for one in runs)
    assert len({(one.count, one.moment) for one in runs}) == len(runs)
    assert f"| {len([one for one in runs if one.count == 1])} |" in table(runs)


@pytest.mark.parametrize(
    ("code", "more_s", "said", "fault"),
    [
        (130, 1.0, "bigqa: interrupted: there is nothing to save\n", None),
        (130, 1.0, "stopped and saved at step 3/20; to go on: bigqa\n", None),
        (1, 1.0, "bigqa: interrupted: there is nothing to save\n", "exit code 1"),
        (130, 31.0, "stopped and saved at step 3/20\n", "31 s"),
        (130, 1.0, "step 3/20\n", "no word"),
        (130, 1.0, "Traceback (most recent call last):\nstopped and saved at step 3/20\n", "a traceback"),
    ],
)
def test_an_end_that_is_amiss_is_told(tmp_path: Path, code: int, more_s: float, said: str, fault: str | None) -> None:
    found = list(faults_of_end(tmp_path / "run", signal.SIGINT, code, more_s, last_word(said), said))
    assert [one.partition(":")[0] for one in found] == ([fault] if fault else [])


def test_a_folder_that_is_left_amiss_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert list(faults_of_folder(run, "nothing to save")) == []
    run.mkdir()
    (run / "model.tmp").touch()
    (run / ".ended").touch()
    assert [one.partition(":")[0] for one in faults_of_folder(run, "saved at step 3/20")] == [
        "half-written",
        "left in the folder",
        "not saved",
    ]


def test_what_is_written_down_is_read_again(tmp_path: Path) -> None:
    one = Stopped(2, 0, "SIGHUP", 1.5, 129, 0.1, 0.2, "stopped and saved at step 4/20", (), "abc")
    (tmp_path / "a.jsonl").write_text(json.dumps(one._asdict()) + "\n", encoding="utf-8")
    assert read(tmp_path / "a.jsonl") == [one] and one.kind == "saved"
    assert list(stop(tmp_path / "a.jsonl", 2, 1)) == []  # it is there


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_signals_at_random_moments(tmp_path: Path, count: int) -> None:
    seed, file = int(os.environ.get("BIGQA_SEED", "22")), tmp_path / "runs.jsonl"
    for one in stop(file, count, MOMENTS, seed):
        print(line_of(one), flush=True)
    print(table(read(file)))
    assert [line_of(one) for one in read(file) if one.faults] == []
