"""A search: its file, which trials come, which are lost and come again, the median rule."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import LIMIT_S, here, until
from tables import KINDS, write_jsonl

from bigqa.errors import BigqaError, UsageError
from bigqa.runs import study as study_room
from bigqa.runs.search import Choices, Search, Span, read_search
from bigqa.runs.study import Study
from bigqa.runs.sweep import said
from bigqa.who import me

optuna = pytest.importorskip("optuna")
SEARCH = Search("s", {"dev_file": "d"}, {"lr": Span(1e-5, 1e-2, True, False, None)}, 3, stops_early=True, seed=1)
GRID = dataclasses.replace(SEARCH, axes={"epochs": Choices((1.0, 2.0))}, trials=9)
TRAIN = "train: {model: tiny, train-file: t.json, dev-file: d.json}\n"


def study(search: Search = SEARCH, storage: Any = None, **more: Any) -> Study:
    return Study(search, storage or optuna.storages.InMemoryStorage(), least=False, **more)


def written(folder: Path, text: str) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_is_read_with_its_numbers(tmp_path: Path) -> None:
    text = (
        TRAIN
        + "search: {lr: {from: 1e-5, to: '1e-3', log: true}, epochs: [2, 3], seq-len: {from: 64, to: 256, step: 64}}"
    )
    found = read_search(written(tmp_path, text))
    assert found.axes["lr"] == Span(1e-5, 1e-3, True, False, None) and found.axes["epochs"] == Choices((2.0, 3.0))
    assert found.trials == 20 and found.seed == 42 and found.name == "sweep" and found.options["eval_times"] == 5
    assert found.axes["seq_len"].size == 4 and found.size is None and len(list(found.corners())) == 4
    assert next(found.largest())["seq_len"] == 256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TRAIN + "search: {lr: [1]}\ntrails: 3", "unknown field 'trails': is trials meant"),
        (TRAIN + "search: {lrr: [1]}", "search has an unknown field 'lrr': is lr meant"),
        (TRAIN + "search: {train-file: [a, b]}", "search has an unknown field 'train-file'"),
        (TRAIN + "search: {lr: {from: 1, to: 2, steps: 1}}", "unknown field 'steps': is step meant"),
        (TRAIN + "search: {lr: {from: 1}}", "search: lr: to is missing"),
        (TRAIN + "search: {lr: {from: 1, to: 0.5}}", "from 1.0 is not below to 0.5"),
        (TRAIN + "search: {warmup: {from: 0, to: 0.5, log: true}}", "log wants numbers above 0"),
        (TRAIN + "search: {lr: {from: 1e-5, to: 20}}", "lr: to: --lr: '20' is not a number"),
        (TRAIN + "search: {lr: 1e-5}", "lr is '1e-5'; write a list of values, or {from"),
        (TRAIN + "search: {epochs: [2, 2]}", "epochs: a value is there twice"),
        (TRAIN + "search: {model: [tiny, bert-base]}", "model is under train and under search"),
        (TRAIN + "search: {lr: [1]}\ntrials: none", "trials: 'none' is not a whole number"),
        (TRAIN, "search is missing"),
        ("train: {model: tiny, train-file: a}\nsearch: {lr: [1]}", "train has no dev-file"),
        (TRAIN[:-2] + ", eval-every: 5}\nsearch: {lr: [1]}", "write eval-times in the place of eval-every"),
        ("train: {model: [}", "line 1: no YAML"),
        ("- a", "list where fields are wanted"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        read_search(file)
    assert said in str(refused.value) and str(file) in str(refused.value)


def test_there_are_as_many_trials_as_asked_for() -> None:
    found = study()
    asked = [found.ask() for _ in range(4)]
    assert asked[3] is None and len({one.params["lr"] for one in asked if one}) == 3
    for one in asked[:3]:
        assert one is not None
        found.tell(one, 1.0)
    assert found.over() == 3 and found.ask() is None and found.running_elsewhere() == 0


def test_a_search_that_is_gone_on_with_does_not_begin_anew() -> None:
    """The third trial is the same, whether one process asked for all or another for the last."""
    one, other, storage = study(), study(), None
    first = [one.ask(), one.ask(), one.ask()]
    again = [other.ask(), other.ask()]
    storage = other.storage
    last = study(storage=storage).ask()
    assert [a.params for a in first if a] == [a.params for a in (*again, last) if a]


def test_nothing_is_tried_twice() -> None:
    found = study(GRID)
    asked = [found.ask(), found.ask()]
    assert {one.params["epochs"] for one in asked if one} == {1.0, 2.0} and found.ask() is None


def lost(found: Study, **who: Any) -> Any:
    """Return a trial of a process that is gone, as a storage keeps it."""
    asked = found.ask()
    assert asked is not None
    found.note(asked, who=me() | {"pid": 2**22 + 1} | who, folder="trial-0000")
    return asked


def test_a_trial_of_a_process_that_is_gone_comes_again() -> None:
    first = study()
    gone = lost(first)
    second = study(storage=first.storage)
    again = second.ask()
    assert again is not None and again.params == gone.params
    assert (again.number, again.root) == (1, 0) and again.number != gone.number
    assert second.seats() == 1 and study(storage=first.storage).running_elsewhere() == 1
    second.tell(again, 2.0)
    assert [second.is_lost(one) for one in second.trials()] == [True, False] and second.over() == 1


def test_a_trial_that_lives_is_left_alone() -> None:
    first = study()
    first.ask()
    second = study(storage=first.storage)
    other = second.ask()
    assert other is not None and (other.number, other.root) == (1, 1) and second.running_elsewhere() == 1


def test_on_another_machine_a_beat_that_stands_still_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    first = study()
    gone = lost(first, boot="another")
    second, now = study(storage=first.storage), [1000.0]
    monkeypatch.setattr(study_room.time, "monotonic", lambda: now[0])

    def is_lost() -> bool:
        second.take_up_lost()
        return second.is_lost(second.trials()[0])

    assert not is_lost()
    now[0] += study_room.GONE_S - 1
    gone.trial.set_user_attr("beat", 5)
    assert not is_lost()
    now[0] += study_room.GONE_S - 1
    assert not is_lost()
    now[0] += 2
    assert is_lost()


def test_what_a_dead_process_had_is_told_too_late_when_it_lives_again() -> None:
    first = study()
    asleep = lost(first)
    second = study(storage=first.storage)
    again = second.ask()
    first.tell(asleep, 9.0)
    assert again is not None
    second.tell(again, 2.0)
    assert [one.value for one in second.trials() if one.value is not None] == [2.0]


def test_a_trial_that_said_why_it_failed_is_not_tried_again() -> None:
    found = study()
    asked = found.ask()
    assert asked is not None
    found.tell(asked, problem="out of memory")
    following = found.ask()
    assert following is not None and following.root == following.number and found.over() == 1


def test_the_median_of_five_ends_what_is_worse() -> None:
    """Halfway, five trials had 1 to 5: 2.9 is below their median, 3.1 is not."""
    found = study(dataclasses.replace(SEARCH, trials=20))
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        asked = found.ask()
        assert asked is not None and not found.report(asked, 2, value)
        found.tell(asked, value)
    for value, ended in ((2.9, True), (3.1, False)):
        asked = found.ask()
        assert asked is not None and found.report(asked, 2, value) is ended
    calm = study(dataclasses.replace(SEARCH, stops_early=False))
    asked = calm.ask()
    assert asked is not None and not calm.report(asked, 1, -100.0)


def test_a_study_of_another_search_is_refused() -> None:
    first = study()
    with pytest.raises(BigqaError, match=r"'s' in this storage was begun with another search \(lr: then"):
        study(GRID, storage=first.storage)
    study(dataclasses.replace(SEARCH, trials=100), storage=first.storage)


def test_a_sweep_says_what_is_wrong_before_it_begins(tmp_path: Path) -> None:
    file = written(tmp_path, TRAIN + "search: {lr: [1e-5, 1e-4]}")
    done = here("sweep", file, "--out", tmp_path / "out")
    assert done.returncode == 1 and "t.json" in done.stderr and not (tmp_path / "out").exists()
    (tmp_path / "t.json").write_text(json.dumps({"data": []}))
    data = str(tmp_path / "t.json")
    file.write_text(json.dumps({"train": {"model": "tiny", "train-file": data, "dev-file": data, "metric": "f2"},
                                "search": {"lr": [1e-5]}}))  # fmt: skip
    done = here("sweep", file, "--out", tmp_path / "out")
    assert done.returncode == 2 and "--metric f2 is none of this task's scores" in done.stderr


def test_parameters_are_said_in_a_line() -> None:
    assert said({"lr": 3.21e-5, "global_batch": 16, "model": "a"}) == "lr 3.21e-05, global-batch 16, model a"


@pytest.mark.slow
def test_four_processes_of_one_search_of_which_one_is_killed(tmp_path: Path) -> None:
    """Real runs, SQLite in the folder; the trial of the one killed with -9 comes again, from its last checkpoint."""
    texts = list(KINDS.values())
    rows: list[dict[str, object]] = [{"sentence1": one, "sentence2": one, "score": 1.0} for one in texts]
    data, out, steps, trials = str(write_jsonl(tmp_path / "pairs.jsonl", rows)), tmp_path / "out", 40, 8
    train = {"model": "tiny", "task": "score", "metric": "mse", "train-file": data, "dev-file": data, "seq-len": 32,
             "global-batch": 3, "micro-batch": 3, "device": "cpu", "precision": "fp32", "max-steps": steps,
             "save-every": 5, "check": False}  # fmt: skip
    search = {"lr": {"from": 1e-5, "to": 1e-2, "log": True}}
    asked = {"train": train, "search": search, "trials": trials, "early-stop": False}
    words = [sys.executable, "-m", "bigqa.cli", "sweep", str(written(tmp_path, json.dumps(asked))), "--out", str(out)]

    def start(number: int) -> "subprocess.Popen[bytes]":
        with (tmp_path / f"{number}.txt").open("wb") as printed:
            return subprocess.Popen([*words, "--at-once", "1"], stdout=printed, stderr=subprocess.STDOUT)

    def said_of(number: int) -> str:
        return (tmp_path / f"{number}.txt").read_text(encoding="utf-8")

    def its_checkpoints() -> list[Path]:
        return [
            one for name in re.findall(r"begun in (\S+)", said_of(0))[-1:] for one in Path(name).glob("checkpoints/*")
        ]

    processes = [start(number) for number in range(4)]
    until(lambda: bool(its_checkpoints()))
    victim = Path(re.findall(r"begun in (\S+)", said_of(0))[-1])
    processes[0].kill()
    assert processes[0].wait() == -signal.SIGKILL
    assert [one.wait(LIMIT_S) for one in processes[1:]] == [0, 0, 0], [said_of(number) for number in (1, 2, 3)]
    found = json.loads((out / "trials.json").read_text(encoding="utf-8"))
    assert [row["state"] for row in found["trials"]] == ["complete"] * trials
    again = [row for row in found["trials"] if row["again"]]
    assert [row["folder"] for row in again] == [victim.name] and any(
        f"going on in {victim}" in said_of(n) for n in (1, 2, 3)
    )
    for row in found["trials"]:
        lines = (out / row["folder"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))
    assert [one.parent.name for one in out.glob("trial-*/model")] == [found["trials"][0]["folder"]]
