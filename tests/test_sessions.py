"""A machine that is lent for some hours, another tomorrow, a folder that comes and goes: `--until`, `--resume auto`."""

import functools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import bigqa, here, train_here
from safetensors.torch import load_file
from small_runs import STEPS, WORDS, metrics, options, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigqa.engine.loop import fit, saving
from bigqa.engine.loop.deadline import TIME_IS_UP, UNTIL_VARIABLE, Deadline, give_if_none
from bigqa.engine.loop.disk import Appended
from bigqa.engine.processes import Processes
from bigqa.errors import BigqaError, UsageError
from bigqa.files import write_json
from bigqa.plan.planner import Planner
from bigqa.ranges import duration
from bigqa.run import planning
from bigqa.run.again import AUTO, over, resolved
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import begin, settings_from
from bigqa.sample import FOLDER
from bigqa.settings import read_settings
from bigqa.units import parse_seconds


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(out)
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


def assert_alike(one: Path, other: Path) -> None:
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_times_as_people_write_them() -> None:
    assert [parse_seconds(text) for text in ("11h30m", "90m", "45s", "1d 2h", "5min")] == [41400, 5400, 45, 93600, 300]
    for text in ("18:00", "", "90", "1.5h", "h", "-5m", "0s"):
        with pytest.raises(UsageError, match="is not a time from now such as 11h30m"):
            duration("until")(text)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_ahead_is_reckoned_from_the_longest_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    deadline = Deadline(2000.0, clock)
    for kind, seconds in (("step", 4.0), ("step", 8.0), ("step", 2.0), ("save", 40.0), ("scores", 100.0)):
        with deadline.timed(kind):
            clock.now += seconds
    # A step of 8 s and a save of 40 s, a quarter more, and a second.
    clock.now = 2000 - 1.25 * 48 - 1.001
    assert not deadline.is_near(step=1)
    clock.now += 0.01
    assert deadline.is_near(step=1) and not deadline.is_near()
    clock.now -= 100
    assert deadline.is_near(step=1, scores=1) and not deadline.is_near(step=1)
    assert not Deadline(None, clock).is_near(step=10**9)


def test_before_the_first_save_the_disk_is_taken_for_a_slow_one() -> None:
    clock = Clock()
    deadline = Deadline(11000.0, clock)
    deadline.expect_to_save(3_000_000_000)
    assert deadline.ahead_s(save=1) == pytest.approx(125)
    deadline.expect_to_save(10**15)
    assert deadline.ahead_s(save=1) == pytest.approx(1250)  # a tenth of what is left
    with deadline.timed("save"):
        clock.now += 7
    assert deadline.ahead_s(save=1) == pytest.approx(8.75)


def test_what_takes_longer_than_any_before_is_saved_beside() -> None:
    saved = threading.Event()
    with Deadline(time.time() - 1).watched(saved.set, every_s=0.001):
        assert saved.wait(60)


def test_a_run_that_goes_on_keeps_the_end_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNTIL_VARIABLE, "123.0")
    give_if_none(60)
    assert Deadline.of_environment().at == 123


def test_when_the_time_is_up_a_run_is_saved_and_goes_on_to_the_same_model(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    monkeypatch.setenv(UNTIL_VARIABLE, str(time.time()))  # past when the first step is over
    with pytest.raises(SystemExit) as stop:
        fine_tune(settings_from(options(out), None), resume=False)
    assert stop.value.code == TIME_IS_UP
    said = " ".join(capsys.readouterr().out.split())
    assert f"the time is up: stopped and saved at step 1/{STEPS}; to go on: bigqa train --resume {out}" in said
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000001"]
    monkeypatch.delenv(UNTIL_VARIABLE)
    fine_tune(settings_from({}, out), resume=True)
    assert_alike(out, unbroken)
    assert [record["step"] for record in metrics(out)] == list(range(1, STEPS + 1))


def words(out: Path, **more: Any) -> list[str]:
    given = {name: value for name, value in (WORDS | more).items() if name != "check"}
    named = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", "--resume", "auto", "--out", str(out), "--no-check", *named]


def test_one_command_begins_goes_on_and_finds_nothing_left(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setenv(UNTIL_VARIABLE, str(time.time()))
    assert train_here(*words(out)[1:]).returncode == TIME_IS_UP
    monkeypatch.delenv(UNTIL_VARIABLE)
    done = train_here(*words(out)[1:])
    assert done.returncode == 0 and "going on from step 1" in done.stdout
    assert_alike(out, unbroken)
    done = here(*words(out))
    assert done.returncode == 0
    assert done.stdout == f"{out} is complete: {STEPS} steps; the model is in {out / 'model'}\n"


@pytest.mark.slow
def test_a_launched_run_ends_by_the_clock(tmp_path: Path) -> None:
    done = bigqa(*words(tmp_path / "run", max_steps=100_000), "--until", "40s")
    assert done.returncode == TIME_IS_UP, done.stderr
    assert f"bigqa train --resume {tmp_path / 'run'}" in done.stdout + done.stderr


def test_what_is_said_again_must_be_the_same(unbroken: Path, tmp_path: Path) -> None:
    given = {name: value for name, value in options(unbroken).items() if name != "check"}
    assert resolved(given, AUTO) == ({}, unbroken)
    changes, folder = resolved(given | {"save_every": 3, "train_file": FOLDER / "dev.json"}, AUTO)
    assert folder == unbroken and changes == {"save_every": 3, "train_file": FOLDER / "dev.json"}
    with pytest.raises(UsageError, match=r"--lr 0.5: .* was begun with 0.001; leave it so, or begin another --out"):
        resolved(given | {"lr": 0.5}, AUTO)
    with pytest.raises(UsageError, match="--resume auto wants --out"):
        resolved({"lr": 0.5}, AUTO)
    assert resolved(given | {"out": tmp_path}, AUTO)[1] is None
    assert resolved(given, unbroken) == (given, unbroken)


def test_a_run_is_over_when_it_is_scored_too(unbroken: Path, tmp_path: Path) -> None:
    settings, dev_file = read_settings(unbroken / "config.json"), FOLDER / "dev.json"
    settings = settings.model_copy(update={"out": tmp_path})
    assert over(settings) is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    report: dict[str, Any] = {"steps": STEPS, "settings": {"dev_file": str(dev_file)}}
    write_json(tmp_path / "report.json", report)
    assert over(settings) is None  # as after a kill while its page was written
    (tmp_path / "report.html").touch()
    assert over(settings) is not None
    scored = settings.model_copy(update={"dev_file": dev_file})
    assert over(scored) is None  # as after a kill while it was scored
    write_json(tmp_path / "report.json", report | {"scores": {}})
    assert over(scored) is not None
    assert over(settings.model_copy(update={"dev_file": FOLDER / "train.json"})) is None


def test_a_damaged_folder_is_not_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": "ti')
    done = here(*words(tmp_path))
    assert done.returncode == 1 and "the run's config is cut short" in done.stderr


def test_on_another_machine_a_plan_of_our_own_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Planner, "candidates", functools.partialmethod(Planner.candidates, names=["cpu"]))
    out, hardware, processes = tmp_path / "run", planning.detect(), Processes("cpu")
    other = hardware.model_copy(update={"host_total_bytes": 2 * hardware.host_total_bytes})
    monkeypatch.setattr(planning, "detect", lambda: other)
    begun = planning.planned(settings_from(options(out, micro_batch=None, precision="auto"), None), processes)
    begin(begun, {})
    capsys.readouterr()
    monkeypatch.setattr(planning, "detect", lambda: hardware)
    now = planning.planned(settings_from({}, out), processes)
    assert capsys.readouterr().out == (
        f"planned for {begun.planned_for}, now on {now.planned_for}; the new plan: cpu in "
        f"{now.strategy and now.strategy.precision}, micro-batches of 8\n"
    )
    assert begun.planned_for != now.planned_for and now.ladder is not None
    assert planning.planned(now, processes) == now
    own = settings_from({"micro_batch": 2}, out)  # where a person chooses
    assert planning.planned(own, processes) == own and (own.micro_batch, own.planned_for) == (2, None)
    assert capsys.readouterr().out == ""


def test_tensorboard_reads_what_is_recorded(unbroken: Path) -> None:
    board = EventAccumulator(str(unbroken / "tensorboard")).Reload()
    assert [(one.step, one.value) for one in board.Scalars("loss")] == [
        (record["step"], pytest.approx(record["loss"])) for record in metrics(unbroken)
    ]


def test_a_folder_that_goes_away_and_comes_back(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "AGAIN_STEPS", 1)
    out, away, one_step = tmp_path / "run", tmp_path / "away", fit._one_step

    def with_the_disk(run: Any, batches: Any, step: int, num_steps: int) -> Any:
        if step == 1:
            out.rename(away)
            out.mkdir()  # an empty mount point
        if step == 4:
            assert not list(out.iterdir())
            out.rmdir()
            away.rename(out)
        return one_step(run, batches, step, num_steps)

    monkeypatch.setattr(fit, "_one_step", with_the_disk)
    train(out)
    said = capsys.readouterr().out
    assert f"{out} is away: step 2 is not saved; going on, and trying again every 1 steps" in said
    assert f"{out} is there again: step 5 is saved" in said
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000005", "step-00000006"]
    assert [record["step"] for record in metrics(out)] == list(range(1, STEPS + 1))
    assert_alike(out, unbroken)


def test_the_last_save_waits_for_the_disk_and_gives_up_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "WAIT_S", 0.0)
    out, save = tmp_path / "run", fit.save

    def without_the_disk(run: Any, step: int, *, must: bool) -> None:
        if step == STEPS:
            out.rename(tmp_path / "away")
        save(run, step, must=must)

    monkeypatch.setattr(fit, "save", without_the_disk)
    with pytest.raises(BigqaError, match="is away, and did not come back: the steps since its last save are lost"):
        train(out)
    assert [path.name for path in (tmp_path / "away/checkpoints").iterdir()][-1:] != ["step-00000006"]


def test_lines_wait_for_their_folder(tmp_path: Path) -> None:
    lines = Appended(tmp_path / "there" / "lines")
    lines.line("한 줄")
    (tmp_path / "there").mkdir()
    lines.line("two")
    lines.close()
    assert (tmp_path / "there" / "lines").read_text(encoding="utf-8") == "한 줄\ntwo\n"
    full = Appended(Path("/dev/full"))
    full.line("x")
    full.path = tmp_path / "there" / "again"
    full.line("y")
    full.close()
    assert full.path.read_text(encoding="utf-8") == "x\ny\n"
    none = Appended(tmp_path)
    with pytest.raises(BigqaError, match="Is a directory"):
        none.line("x")
