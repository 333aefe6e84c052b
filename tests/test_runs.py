"""Several runs: words and files of options, what values say, and which runs begin, go on, are ended and kept."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from commands import here
from tables import KINDS, write_jsonl

from bigqa.errors import BigqaError, UsageError
from bigqa.run import launcher
from bigqa.run.folder import settings_from
from bigqa.runs import member as member_room
from bigqa.runs.member import Member, last_line
from bigqa.runs.pool import carry_out
from bigqa.runs.search import Choices, Search
from bigqa.runs.seeds import Seeds, result
from bigqa.runs.statistics import quantile, summary
from bigqa.runs.sweep import Sweep
from bigqa.runs.sweep import result as sweep_result
from bigqa.runs.together import best_of, check_same, environment_of
from bigqa.runs.words import options_of, words_of

TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 10: 2.228, 30: 2.042}
"""Two-sided 95% points of Student's t, as printed in textbooks: degrees of freedom -> t."""
RUN = """
import json, os, signal, sys, time
from pathlib import Path
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
words = sys.argv[1:]
of = lambda name: words[words.index(name) + 1]
out = Path(of("--resume") if "--resume" in words else of("--out"))
begun = out / "config.json"
seed = json.loads(begun.read_text())["seed"] if begun.exists() else int(of("--seed"))
out.mkdir(exist_ok=True)
begun.write_text(json.dumps({"model": "tiny", "seed": seed}))
print("bigqa: seed", seed, "says why", flush=True)
with (out / "starts").open("a") as starts:
    starts.write(str(os.getpid()) + chr(10))
plot = Path(os.environ["PLOT"])
if plot.exists() and plot.read_text().split()[:2] == ["at", str(seed)]:
    what = plot.read_text().split()[2]
    plot.unlink()
    if what == "fail":
        sys.exit(1)
    if what == "hang":
        (out / "hangs").touch()
        time.sleep(60)
    os.kill(os.getpid(), getattr(signal, what))
(out / "checkpoints").mkdir(exist_ok=True)
(out / "model").mkdir(exist_ok=True)
(out / "model" / "config.json").write_text("{}")
lines = [json.dumps({"wanted": wanted, "given": wanted + (seed % 3) * (-1) ** wanted}) for wanted in (0, 1, 2, 3)]
(out / "predictions.jsonl").write_text(chr(10).join(lines))
figures = {"steps": 4, "seconds": 1.0, "last_loss": 0.5, "peak_memory_bytes": 1, "samples_per_s": 2.0}
report = {"settings": {"dev_file": "dev"}, "scores": {"mse": float((seed % 3) ** 2), "spearman": 50.0, "total": 4}}
(out / "report.json").write_text(json.dumps(figures | report))
"""
"""In the place of training: leaves what a run leaves, in milliseconds, and does at one seed what the plot says."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of runs that are carried out by `RUN`; their folder is `tmp_path / "out"`."""
    script = tmp_path / "run.py"
    script.write_text(RUN, encoding="utf-8")
    monkeypatch.setattr(launcher, "TRAIN_FILE", script)
    monkeypatch.setenv("PLOT", str(tmp_path / "plot"))
    texts = list(KINDS.values())
    rows: list[dict[str, object]] = [{"sentence1": one, "sentence2": one, "score": 1.0} for one in texts]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    return {"model": "tiny", "task": "score", "metric": "mse", "train_file": data, "dev_file": data, "check": False}


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


def plot(folder: Path, text: str) -> None:
    (folder / "plot").write_text(text)


def test_students_t_is_that_of_the_tables() -> None:
    for freedom, point in TABLE.items():
        assert quantile(0.975, freedom) == pytest.approx(point, abs=6e-4)


def test_an_interval_of_values_worked_out_by_hand() -> None:
    """Values 1 to 5: mean 3, spread sqrt(2.5), and 2.776 times sqrt(2.5 / 5) to each side."""
    found = summary([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3 and found.spread == pytest.approx(2.5**0.5)
    assert found.high == pytest.approx(3 + 2.776 * 0.5**0.5, abs=1e-3) and found.low == pytest.approx(6 - found.high)
    assert summary([2.0]).spread is None


def test_words_are_what_the_command_line_takes() -> None:
    words = words_of({"lr": 1e-5, "keep_best": True, "check": False, "deterministic": None, "train_file": Path("a b")})
    assert words == ["--lr", "1e-05", "--keep-best", "--no-check", "--train-file", "a b"]


def test_a_files_options_are_named_with_their_place() -> None:
    found = options_of({"lr": "1e-5", "global-batch": 8, "keep-best": True}, "f: train")
    assert found == {"lr": 1e-5, "global_batch": 8, "keep_best": True}
    for given, said in (
        ({"lrr": 1}, "f: train has an unknown field 'lrr': is lr meant"),
        ({"lr": "fast"}, "f: train: --lr: 'fast' is not a number"),
        ({"lr": True}, "lr is True"),
        ({"keep-best": "yes"}, "keep-best is 'yes'; write true or false"),
        ({"out": "x"}, "unknown field 'out'"),
    ):
        with pytest.raises(UsageError, match=said.replace("(", r"\(")):
            options_of(given, "f: train")


def test_seeds_are_summed_up_and_the_best_model_is_kept(files: dict[str, Any], tmp_path: Path) -> None:
    runs = Seeds(3, files | {"seed": 40}, tmp_path / "out")
    runs.run()
    found = result(runs)
    assert {number: row["scores"]["mse"] for number, row in found["runs"].items()} == {"40": 1, "41": 4, "42": 0}
    assert found["best"] == "seed-42" and found["scores"]["mse"]["mean"] == pytest.approx(5 / 3)
    # Each is off by 1, 2 and 0 in turn, up where the number is even: by 1 on the mean.
    assert found["ensemble"]["mse"] == pytest.approx(1.0) and (tmp_path / "out" / "ensemble").is_dir()
    assert [one.parent.name for one in (tmp_path / "out").glob("*/model")] == ["seed-42"]
    assert not list((tmp_path / "out").glob("*/checkpoints"))


def test_the_same_command_goes_on_and_with_more_runs(files: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    Seeds(1, files, out).run()
    Seeds(2, files, out).run()
    assert [starts(out / name) for name in ("seed-42", "seed-43")] == [1, 1]
    with pytest.raises(BigqaError, match="was begun with lr left out, and is now asked for 0"):
        Seeds(2, files | {"lr": 1e-3}, out)
    with pytest.raises(BigqaError, match="was begun with seed 42, and is now asked for 7"):
        Seeds(2, files | {"seed": 7}, out)


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGABRT"])
def test_a_run_that_died_of_a_signal_is_tried_again(files: dict[str, Any], tmp_path: Path, how: str) -> None:
    plot(tmp_path, f"at 43 {how}")
    runs = Seeds(2, files, tmp_path / "out")
    runs.run()
    assert not runs.failed and starts(tmp_path / "out" / "seed-43") == 2


def test_a_run_that_says_why_is_not_and_the_others_go_on(files: dict[str, Any], tmp_path: Path) -> None:
    plot(tmp_path, "at 43 fail")
    runs = Seeds(3, files, tmp_path / "out")
    runs.run()
    assert runs.failed == {43: "seed 43 says why"} and starts(tmp_path / "out" / "seed-43") == 1
    assert set(runs.done()) == {42, 44}


def test_where_the_first_fails_none_is_begun(files: dict[str, Any], tmp_path: Path) -> None:
    plot(tmp_path, "at 42 fail")
    with pytest.raises(BigqaError, match="seed 42: seed 42 says why"):
        Seeds(3, files, tmp_path / "out").run()
    assert not (tmp_path / "out" / "seed-43").exists()


def test_what_a_killed_start_left_is_no_run(tmp_path: Path, files: dict[str, Any]) -> None:
    """Killed while its config was written aside: the folder is not empty, and no run has begun in it."""
    (tmp_path / "out" / "seed-42").mkdir(parents=True)
    (tmp_path / "out" / "seed-42" / ".config.json.x.tmp").write_text("{")
    member = Member("one", tmp_path / "out" / "seed-42", ["--seed", "42"])
    member.start()
    member._thread.join()
    assert member.code == 0 and member.report is not None


def test_processes_of_a_killed_launcher_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process holds the folder as a worker does whose launcher is gone, and lets it go."""
    folder = tmp_path / "run"
    code = (
        "import fcntl, os, sys, time; from bigqa import lock; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "held = lock.held(folder); held.__enter__()\n"
        "child = os.fork()\n"
        "if child: os._exit(0)\n"
        "os.write(1, b'x'); sys.stdin.read(); os._exit(0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=-1, stdout=-1) as left:
        assert left.stdout is not None and left.stdin is not None
        assert left.stdout.read(1) == b"x"
        entered = threading.Event()

        def enter() -> None:
            with member_room._held_at_last(folder):
                entered.set()

        threading.Thread(target=enter, daemon=True).start()
        assert not entered.wait(0.3)
        left.stdin.close()
        assert entered.wait(60)


def test_a_stop_begins_no_other(files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigqa import interrupts

    plot(tmp_path, "at 42 hang")
    runs, out = Seeds(2, files, tmp_path / "out"), tmp_path / "out"

    def stop() -> None:
        while not (out / "seed-42" / "hangs").exists():
            time.sleep(0.01)
        monkeypatch.setattr(interrupts._Program, "first", signal.SIGTERM)
        assert interrupts._Program.take is not None
        interrupts._Program.take(signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    carry_out(runs, 1)
    thread.join()
    assert not (out / "seed-43").exists() and runs.left == [43]


def words_of_page(out: Path) -> str:
    assert here("page", out).returncode == 0
    text = (out / "page.html").read_text(encoding="utf-8")
    return " ".join(re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", text).split())


def test_the_page_of_seeds_that_go_on(files: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = Seeds(3, files, out)
    for left in (2, 1):
        member = runs.next(0)
        assert member is not None
        subprocess.run([sys.executable, launcher.TRAIN_FILE, *member.words], check=True)
        runs.ended(member)
        assert f"{left} more are not over yet." in words_of_page(out)
    assert "The best model is in seed-42/model." in words_of_page(out)
    runs.run()
    result(runs)
    assert "not over yet" not in words_of_page(out) and "ensemble" in words_of_page(out)


@pytest.mark.parametrize("stops_early", [True, False])
def test_the_page_of_a_sweep_that_goes_on(files: dict[str, Any], tmp_path: Path, stops_early: bool) -> None:
    """At each moment the folder has what there is so far: before the first trial, in its midst, with a result."""
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    search = Search("s", files | {"eval_times": 5}, {"lr": Choices((1e-4, 1e-3))}, 2, stops_early=stops_early, seed=1)

    def words() -> str:
        return words_of_page(out)

    sweep = Sweep(search, out)
    member = sweep.next(0)
    assert member is not None and "1 go on." in words() and "running" in words() and "The best" not in words()
    member.folder.mkdir()
    (member.folder / "plan.json").write_text('{"steps": 10}')
    (member.folder / "evaluations.jsonl").write_text('{"step": 2, "mse": 3.25}\n')
    sweep.look(member)
    if not stops_early:
        sweep_result(sweep)  # as the next trial that begins or ends
    assert "s: 1 trials" in words() and " 3.25 " in words()
    subprocess.run([sys.executable, launcher.TRAIN_FILE, *member.words, "--seed", "42"], check=True)
    sweep.ended(member)
    assert "1 have a result." in words() and "The best is trial 0: mse 0.00." in words()


def test_a_record_that_is_being_written_is_not_the_last(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_line(file) is None
    file.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert last_line(file) == {"step": 2}


def test_each_run_has_a_card_of_its_own_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [environment_of(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1, 2)] == ["2", "5", "2"]
    assert environment_of(0, 1) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert environment_of(0, 2) == {}


def test_the_first_of_equals_is_the_best() -> None:
    assert (
        best_of({"a": 1.0, "b": 2.0, "c": 2.0}, least=False) == "b" and best_of({"a": 1.0, "b": 1.0}, least=True) == "a"
    )


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BigqaError, match="is not a folder of `bigqa seeds`"):
        check_same(tmp_path, "seeds.json", {}, "seeds")


def test_a_metric_that_a_task_lacks_is_refused_before_training(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--metric f2 is none of this task's scores: mse, pearson, spearman"):
        settings_from(files | {"metric": "f2", "out": tmp_path / "run"}, None)


def test_commands_say_what_is_missing(tmp_path: Path) -> None:
    done = here("seeds", "3", "--model", "tiny")
    assert done.returncode == 2 and "--out is missing" in done.stderr
    done = here("seeds", "none", "--out", tmp_path / "a")
    assert done.returncode == 2 and "N: 'none' is not a whole number" in done.stderr
    assert "--at-once" in here("seeds", "--help").stdout and not (tmp_path / "a").exists()


@pytest.mark.slow
def test_seeds_killed_at_random_moments_are_as_if_they_were_not(tmp_path: Path, files: dict[str, Any]) -> None:
    """Real runs, killed with -9 while they train, alone or with their processes; losses are equal to the last bit."""
    monkey = {name: value for name, value in os.environ.items() if name != "PLOT"}
    words = ["seeds", "2", *words_of(files), "--seq-len", "32", "--global-batch", "3", "--micro-batch", "3", "--device",
             "cpu", "--precision", "fp32", "--max-steps", "60", "--save-every", "7", "--out"]  # fmt: skip

    def start(out: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-m", "bigqa.cli", *words, str(out)], env=monkey)

    def losses(out: Path) -> list[list[float]]:
        texts = [(out / f"seed-{seed}" / "metrics.jsonl").read_text() for seed in (42, 43)]
        return [[json.loads(line)["loss"] for line in text.splitlines()] for text in texts]

    def steps(out: Path) -> int:
        return sum(len(file.read_text().splitlines()) for file in out.glob("*/metrics.jsonl"))

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for goal in (5, 30, 70, 110):
        process = start(killed)
        while steps(killed) < goal and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert start(killed).wait() == 0 and start(whole).wait() == 0
    assert losses(killed) == losses(whole) and [len(one) for one in losses(killed)] == [60, 60]
