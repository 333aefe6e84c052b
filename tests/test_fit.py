"""The loop itself, on a model of a few weights: what it saves and keeps, when it stops, and that it goes on."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import in_processes
from transformers import BertConfig, BertForQuestionAnswering, get_linear_schedule_with_warmup

from bigqa import interrupts
from bigqa.engine.build import build
from bigqa.engine.loop import checkpoint, stop
from bigqa.engine.loop.disk import MARK
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.saving import save_alone, save_late
from bigqa.engine.loop.stop import STOP_FILE, StopRequest
from bigqa.engine.loop.training import Training
from bigqa.engine.optim.update import State
from bigqa.engine.processes import Processes
from bigqa.settings import Settings
from bigqa.strategy import Strategy
from bigqa.tasks.qa.task import QuestionAnswering
from bigqa.tasks.rows import Rows

LENGTHS = [16, 9, 12, 16, 5, 7, 11, 14, 16, 6]
STEPS = 7


@pytest.fixture(autouse=True)
def always_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for a wish to stop after every step, however short."""
    monkeypatch.setattr(stop, "LOOK_S", 0.0)


class Kept(Silent):
    """Keeps what it is told, and may ask for a stop."""

    def __init__(self, stop_at: int | None = None, folder: Path | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.stop_at, self.folder = stop_at, folder

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if record["step"] == self.stop_at and self.folder is not None:
            (self.folder / STOP_FILE).touch()

    def say(self, text: str) -> None:
        self.said.append(text)


def training(processes: Processes, out: Path, recorder: Kept, **options: Any) -> Training:
    torch.manual_seed(0)
    out.mkdir(exist_ok=True)
    (out / MARK).touch()  # else it is taken for a disk that is away
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        max_position_embeddings=32,
    )  # fmt: skip
    task = QuestionAnswering(0, True)
    settings = Settings(
        model="tiny", train_file=Path("train.json"), out=out, strategy=Strategy(precision="fp32", device="cpu"),
        precision="fp32", max_steps=STEPS, global_batch=4, seq_len=16, max_query_length=4, doc_stride=4, lr=1e-2,
        warmup=0.3, save_every=2, keep=2, seed=5,
    )  # fmt: skip
    rows = {
        "input_ids": [[number + 4] * length for number, length in enumerate(LENGTHS)],
        "token_type_ids": [[0] * length for length in LENGTHS],
        "start": [1] * len(LENGTHS),
        "end": [3] * len(LENGTHS),
    }
    parts = build(BertForQuestionAnswering(config), task, settings, processes)
    return Training(
        settings=settings, micro_batch=2, processes=processes, parts=parts, windows=Rows.of_columns(rows),
        lengths=LENGTHS, packs=parts.packs, recorder=recorder, stop=StopRequest(out), **options,
    )  # fmt: skip


def _weights(run: Training) -> dict[str, Any]:
    return {name: value.detach().tolist() for name, value in run.parts.model.named_parameters()}


def _saved(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir()) if (out / "checkpoints").is_dir() else []


def test_a_run_keeps_what_it_should_and_goes_on_as_if_nothing_was(tmp_path: Path) -> None:
    for name in ("whole", "broken", "unsaved"):
        (tmp_path / name).mkdir()

    def work(processes: Processes) -> dict[str, Any]:
        found: dict[str, Any] = {}
        whole = training(processes, tmp_path / "whole", Kept())
        feed = whole.feed()
        found["tokens"] = (feed.tokens, [sum(len(part) for part in feed.parts(list(range(4)))[0])])
        feed.close()
        outcome = fit(whole)
        found |= {"whole": _weights(whole), "records": whole.recorder.records, "saved": _saved(tmp_path / "whole")}  # type: ignore[attr-defined]
        found["outcome"] = (outcome.steps, outcome.finished, outcome.last_loss)
        broken = training(processes, tmp_path / "broken", Kept(3, tmp_path / "broken"))
        outcome = fit(broken)
        found["stopped"] = (outcome.steps, outcome.finished, _saved(tmp_path / "broken"))
        again = training(processes, tmp_path / "broken", Kept())
        again.stop.clear()
        kept = checkpoint.load_newest(tmp_path / "broken" / "checkpoints", print)
        assert kept is not None
        checkpoint.restore(kept, again.parts.update)
        outcome = fit(again, kept.step)
        found["again"] = (kept.step, outcome.steps, outcome.finished, [r["step"] for r in again.recorder.records])  # type: ignore[attr-defined]
        found["resumed"] = _weights(again)
        unsaved = training(processes, tmp_path / "unsaved", Kept(), saves=False)
        fit(unsaved, 5)
        found["unsaved"] = (_saved(tmp_path / "unsaved"), [r["step"] for r in unsaved.recorder.records])  # type: ignore[attr-defined]
        outcome = fit(unsaved, STEPS)
        found["nothing"] = (outcome.steps, outcome.finished)
        return found

    (found,) = in_processes(work, 1)
    assert found["tokens"] == (2 * 16, [4])  # two windows of the longest length
    # Every second step and the last; the newest two of them are kept.
    assert found["saved"] == ["step-00000006", "step-00000007"]
    steps, finished, loss = found["outcome"]
    assert (steps, finished) == (STEPS, True) and loss == found["records"][-1]["loss"]
    # Asked for after step 3 was read, obeyed after the step in progress, saved where it stopped.
    stopped_at, finished, saved = found["stopped"]
    assert not finished and stopped_at in (3, 4) and saved[-1] == f"step-{stopped_at:08d}"
    assert found["again"] == (stopped_at, STEPS, True, list(range(stopped_at + 1, STEPS + 1)))
    assert found["resumed"] == found["whole"]
    assert found["unsaved"] == ([], [6, 7]) and found["nothing"] == (STEPS, True)
    _check_records(found["records"])


def _check_records(records: list[dict[str, Any]]) -> None:
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["windows"] for record in records] == [4, 4, 2, 4, 4, 2, 4]
    assert sum(record["tokens"] for record in records[:3]) == sum(LENGTHS)
    assert [record["epoch"] for record in records[2::3]] == [1.0, 2.0]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.3 * STEPS), STEPS)
    for record in records:
        assert record["lr"] == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("world_size", "emptied"), [(1, 1), (2, 0)])
def test_a_process_of_several_waits_for_no_other_before_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, emptied: int
) -> None:
    """Emptying the cache waits for the device, where an average may be begun that the others never join."""
    count: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: count.append(None))
    state = State(weights={"w": torch.ones(2)}, moments={})
    update = SimpleNamespace(changing=False, holds_all=True, forget_gradients=lambda: None, state=lambda: state)
    processes = SimpleNamespace(world_size=world_size, device=torch.device("cuda", 0))
    settings = SimpleNamespace(out=tmp_path, model_dump=lambda mode: {})
    run: Any = SimpleNamespace(
        parts=SimpleNamespace(update=update), processes=processes, settings=settings, saves=True, recorder=Silent(),
        beside=None, plan={},
    )  # fmt: skip
    assert save_alone(run, 3) and len(count) == emptied
    assert (tmp_path / "checkpoints" / "step-00000003" / "weights.safetensors").is_file()


class Left(BaseException):
    """In the place of the program's end."""


def _leaving(monkeypatch: pytest.MonkeyPatch, *, raises: bool = True) -> list[tuple[str, int]]:
    said: list[tuple[str, int]] = []

    def leave(word: str, code: int) -> None:
        said.append((word, code))
        if raises:
            raise Left

    monkeypatch.setattr(interrupts, "listens", lambda: True)
    monkeypatch.setattr(interrupts, "leave", leave)
    return said


@pytest.mark.parametrize(("completed", "saved"), [(3, 3), (0, None)])
def test_a_step_that_takes_too_long_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, completed: int, saved: int | None
) -> None:
    """What is whole is saved in the middle of a step, and the run goes on from there as if nothing had been."""
    said = _leaving(monkeypatch)

    def work(processes: Processes) -> dict[str, Any]:
        (tmp_path / "whole").mkdir()
        (tmp_path / "late").mkdir()
        whole = training(processes, tmp_path / "whole", Kept())
        fit(whole)
        late = training(processes, tmp_path / "late", Kept())
        loss_sum = late.parts.task.loss_sum

        def slow(model: Any, batch: Any) -> Any:
            if late.parts.update.completed == completed:
                late.stop.number = 15
                assert late.stop.late is not None
                late.stop.late()
            return loss_sum(model, batch)

        late.parts.task.loss_sum = slow  # type: ignore[method-assign]
        with pytest.raises(Left):
            fit(late)
        found: dict[str, Any] = {"said": said[0], "saved": _saved(tmp_path / "late"), "whole": _weights(whole)}
        again = training(processes, tmp_path / "late", Kept())
        kept = checkpoint.load_newest(tmp_path / "late" / "checkpoints", print)
        if kept is not None:
            checkpoint.restore(kept, again.parts.update)
        fit(again, kept.step if kept else 0)
        return found | {"again": _weights(again)}

    [found] = in_processes(work, 1)
    word, code = found["said"]
    assert code == 143 and f"stopped within step {completed + 1}" in word and "bigqa train --resume" in word
    assert (f"saved at step {saved}" in word) is (saved is not None) and ("nothing to save" in word) is (saved is None)
    assert found["saved"] == ["step-00000002", "step-00000003"] if saved else found["saved"] == []
    assert found["again"] == found["whole"]


def test_weights_are_not_read_while_they_are_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that saves beside the other one waits for the update; what the loop has saved it saves no more."""
    said = _leaving(monkeypatch, raises=False)

    def work(processes: Processes) -> list[Any]:
        run = training(processes, tmp_path, Kept())
        step = run.parts.update.optimizer.step
        late: list[threading.Thread] = []
        seen: list[Any] = []

        def slow(*args: Any) -> Any:
            if run.parts.update.completed == 2:
                beside = threading.Thread(target=run.stop.late)
                beside.start()
                beside.join(0.2)
                seen.extend([beside.is_alive(), len(said)])
                late.append(beside)
            return step(*args)

        run.parts.update.optimizer.step = slow  # type: ignore[method-assign]
        fit(run)
        late[0].join()
        seen.append([word for word, _ in said])
        run.stop.obeyed = True
        save_late(run, 0)
        return [*seen, len(said)]

    [(waited, before, words, after)] = in_processes(work, 1)
    assert waited and before == 0 and after == 1
    assert len(words) == 1 and int(words[0].partition("saved at step ")[2].partition(";")[0]) >= 3


def test_a_stop_in_the_last_step_is_obeyed(tmp_path: Path) -> None:
    """What comes after it, such as to be scored, may take as long as all that was before."""

    def work(processes: Processes) -> Any:
        outcome = fit(training(processes, tmp_path, Kept(STEPS, tmp_path)))
        return outcome.steps, outcome.finished, _saved(tmp_path)

    assert in_processes(work, 1) == [(STEPS, False, ["step-00000006", "step-00000007"])]


@pytest.mark.parametrize("problem", [None, "host memory cannot be pinned here"])
def test_memory_that_could_not_be_pinned_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str | None
) -> None:
    monkeypatch.setattr("bigqa.engine.pinned.refused", lambda: problem)
    kept = Kept()
    fit(training(Processes("cpu"), tmp_path, kept, saves=False))
    assert kept.said == ([problem] if problem else []) and len(kept.records) == STEPS


def test_four_processes_go_on_as_if_nothing_was(tmp_path: Path) -> None:
    """Of two, sums are the same in any order; of four, torch's other buckets after a first step make them others."""
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()

    def work(processes: Processes) -> tuple[dict[str, Any], dict[str, Any]]:
        whole = training(processes, tmp_path / "whole", Kept())
        fit(whole)
        fit(training(processes, tmp_path / "broken", Kept(3, tmp_path / "broken")))
        again = training(processes, tmp_path / "broken", Kept())
        again.stop.clear()
        processes.wait()
        kept = checkpoint.load_newest(tmp_path / "broken" / "checkpoints", print)
        assert kept is not None and kept.step < STEPS
        checkpoint.restore(kept, again.parts.update)
        fit(again, kept.step)
        return _weights(whole), _weights(again)

    for whole, again in in_processes(work, 4):
        assert again == whole
