"""Scores as a run trains: schedules, which model is kept, when it ends, and a resumed run that knows it all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import train_here
from safetensors.torch import load_file
from tables import KINDS, write_jsonl
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from bigqa.engine.loop import evaluation
from bigqa.engine.loop.evaluation import FILE, Evaluation
from bigqa.engine.optim.optimizers import rate_at
from bigqa.errors import BigqaError, UsageError
from bigqa.run import delivery
from bigqa.sample import FOLDER

WORDS = ["--task", "score", "--model", "tiny", "--device", "cpu", "--precision", "fp32", "--seq-len", "32", "--lr",
         "1e-3", "--global-batch", "9", "--micro-batch", "9", "--dropout", "0", "--no-check"]  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = list(KINDS.values())
    values: list[dict[str, object]] = [
        {"sentence1": one, "sentence2": other, "score": float(one == other)} for one in texts for other in texts
    ]
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", values)


def run(pairs: Path, out: Path, *more: Any) -> Any:
    return train_here(*WORDS, "--train-file", pairs, "--dev-file", pairs, "--out", out, *more)


def evaluations(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / FILE).read_text().splitlines()]


def test_the_best_model_is_handed_over_and_a_resumed_run_knows_it(pairs: Path, tmp_path: Path) -> None:
    """With the rate at its peak to the end the last model is not the best; one run is cut after its third step."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["--max-steps", "8", "--eval-every", "1", "--keep-best", "--metric", "mse", "--schedule", "constant",
             "--lr", "5e-3", "--warmup-steps", "0", "--save-every", "3", "--keep", "20"]  # fmt: skip
    done = run(pairs, whole, *words)
    assert done.returncode == 0, done.stderr
    history, report = evaluations(whole), json.loads((whole / "report.json").read_text())
    best = min(history, key=lambda one: one["mse"])
    assert [one["step"] for one in history] == list(range(1, 9)) and report["best"] == best
    assert report["scores"]["mse"] == pytest.approx(best["mse"], rel=1e-4)
    assert f"handing over the model of step {best['step']}, the best" in done.stdout and not (whole / "best").exists()
    assert_handed_over_again(pairs, tmp_path, whole, words)
    assert run(pairs, cut, *words[2:], "--max-steps", "8").returncode == 0  # what follows is as if killed after step 3
    for folder in (cut / "checkpoints").iterdir():
        if folder.name > "step-00000003":
            shutil.rmtree(folder)
    done = train_here("--resume", cut)
    assert done.returncode == 0, done.stderr
    assert evaluations(cut) == history and "going on from step 3" in done.stdout
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_patience_ends_a_run_that_gets_no_better(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(pairs, out, "--epochs", "30", "--patience", "2", "--metric", "mse", "--lr", "1e-12", "--warmup", "0")
    assert done.returncode == 0 and "no better mse in 2 scores" in done.stdout, done.stderr
    found = evaluations(out)  # each epoch is one step; what is learned is nothing
    assert len(found) < 30 and found[-1]["step"] == json.loads((out / "report.json").read_text())["steps"]


def assert_handed_over_again(pairs: Path, folder: Path, whole: Path, words: list[str]) -> None:
    """A run that ends while it writes its report comes to the same model when it goes on."""
    ended = folder / "ended"
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(delivery, "write_card", _end)
        assert run(pairs, ended, *words).returncode == 1
    assert train_here("--resume", ended).returncode == 0
    first, second = (load_file(one / "model" / "model.safetensors") for one in (whole, ended))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not (ended / "best").exists()


def _end(*_: Any) -> None:
    raise BigqaError("the end")


def test_what_hangs_on_a_dev_file_asks_for_one(pairs: Path, tmp_path: Path) -> None:
    done = train_here(*WORDS, "--train-file", pairs, "--out", tmp_path / "run", "--patience", "2")
    assert done.returncode == 2 and "--patience wants --dev-file" in done.stderr


def scripted(folder: Path, **more: Any) -> Evaluation:
    (folder / "config.json").touch()  # which says that the disk is there
    return Evaluation(folder, 2, dict, "f1", **more)


def test_the_first_of_the_best_counts_and_patience_with_it(tmp_path: Path) -> None:
    found = scripted(tmp_path, patience=2)
    assert [found.add(step, {"f1": f1}) for step, f1 in ((2, 50.0), (4, 60.0), (6, 60.0))] == [True, True, False]
    assert found.best == {"step": 4, "f1": 60.0} and not found.ended
    assert not found.add(8, {"f1": float("nan")}) and found.ended
    again = scripted(tmp_path, patience=2)
    again.begin(6)
    assert [one["step"] for one in again.history] == [2, 4, 6] and not again.ended
    assert not again.due(6, 9) and again.due(8, 9) and again.due(9, 9) and not again.due(7, 9)
    least = scripted(tmp_path, least=True)
    assert least.add(2, {"f1": 50.0}) and least.add(4, {"f1": 40.0})


def kept(folder: Path, step: int) -> Path:
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text(str(step))
    return checkpoint


def test_a_run_that_is_killed_before_its_best_is_kept_scores_it_again(tmp_path: Path) -> None:
    """Its step is saved and its scores are written, but the model is not kept: another would be handed over as it."""
    found = scripted(tmp_path, keep_best=True)
    assert found.add(2, {"f1": 50.0})
    found.keep(kept(tmp_path, 2))
    assert found.add(4, {"f1": 60.0})
    again = scripted(tmp_path, keep_best=True)
    again.begin(4)
    assert [one["step"] for one in again.history] == [2] and again.due(4, 9) and again.add(4, {"f1": 60.0})
    again.keep(kept(tmp_path, 4))
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-00000004"]
    last = scripted(tmp_path, keep_best=True)
    last.begin(4)
    assert [one["step"] for one in last.history] == [2, 4]


def test_the_best_is_kept_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(tmp_path, keep_best=True)
    found.keep(kept(tmp_path, 2))

    def cut_short(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "_link", cut_short)
    with pytest.raises(KeyboardInterrupt):
        found.keep(kept(tmp_path, 4))
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-00000002"]


def test_scores_wait_for_a_disk_that_is_away(tmp_path: Path) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    found = scripted(run)
    run.rename(away)
    run.mkdir()  # an empty mount point
    assert found.add(2, {"f1": 50.0}) and list(run.iterdir()) == []
    run.rmdir()
    away.rename(run)
    found.add(4, {"f1": 60.0})
    assert [one["step"] for one in evaluations(run)] == [2, 4]


@pytest.mark.parametrize(
    "line", [b'{"step": 4, "f1"', b"[]", b'{"f1": 50.0}', b'{"step": 4}', b"\xff", b'{"step": "4", "f1": 1}']
)
def test_damaged_scores_are_refused_in_a_line(tmp_path: Path, line: bytes) -> None:
    found = scripted(tmp_path)
    found.add(2, {"f1": 50.0})
    with (tmp_path / FILE).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(BigqaError, match=f"{FILE} is damaged: a line of it is not the scores of a step"):
        found.begin(4)


def test_an_unknown_metric_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--metric f1 is none of this task's scores: mse, pearson"):
        scripted(tmp_path).add(2, {"pearson": 1.0, "mse": 2.0, "per_class": {}})


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_schedules_are_those_of_the_library(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made: Any = {
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, 3, 10),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, 3),
    }[name]()
    for step in range(10):
        assert rate_at(name, step, 10, 3) == pytest.approx(made.get_last_lr()[0])
        optimizer.step()
        made.step()


def test_a_part_of_the_dev_file_is_scored_as_it_trains(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(pairs, out, "--max-steps", "2", "--eval-every", "1", "--eval-on", "4")
    assert done.returncode == 0, done.stderr
    assert [one["total"] for one in evaluations(out)] == [4, 4]
    assert json.loads((out / "report.json").read_text())["scores"]["total"] == 9


def test_the_first_questions_alone_are_scored(tmp_path: Path) -> None:
    """The scores of a part are those of a file that holds that part."""
    data = json.loads((FOLDER / "dev.json").read_text(encoding="utf-8"))
    data["data"] = data["data"][:2]  # of four questions each
    part = tmp_path / "part.json"
    part.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    words = ["--model", "tiny", "--train-file", FOLDER / "train.json", "--limit", "16", "--max-steps", "1",
             "--no-check", "--device", "cpu", "--precision", "fp32", "--eval-every", "1", "--out"]  # fmt: skip
    first = train_here(*words, tmp_path / "one", "--dev-file", part)
    second = train_here(*words, tmp_path / "two", "--dev-file", FOLDER / "dev.json", "--eval-on", "8")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert evaluations(tmp_path / "one")[0]["total"] == 8
    assert evaluations(tmp_path / "one") == evaluations(tmp_path / "two")
