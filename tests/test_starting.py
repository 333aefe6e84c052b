"""A run's beginning and end: what is refused before anything is made, what may change, how a stop is asked for."""

import importlib.util
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import options, train

from bigqa.engine.loop.stop import StopRequest
from bigqa.errors import BigqaError
from bigqa.run import delivery
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import begin, settings_from
from bigqa.sample import FOLDER
from bigqa.settings import make_settings
from bigqa.strategy import STRATEGIES


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A run takes SIGINT and SIGTERM for itself."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": STRATEGIES["zero3-nvme"]}, "--nvme DIR"),
        ({"strategy": STRATEGIES["8bit"]}, "pip install 'bigqa[8bit]'"),
        ({"strategy": STRATEGIES["release-recompute"], "precision": "fp16"}, "use bf16"),
        ({"dev_file": FOLDER / "no-such.json"}, "no-such.json"),
        ({"dev_file": FOLDER / "vocab.txt"}, "vocab.txt"),
    ],
    ids=["no folder", "no package", "axes", "no file", "not data"],
)
def test_what_cannot_end_well_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "bitsandbytes" else found(name))
    settings = make_settings(**(options(tmp_path / "run") | changes))
    with pytest.raises(BigqaError, match=re.escape(said)):
        fine_tune(settings, resume=False)
    assert not (tmp_path / "run").exists()


def test_a_run_may_be_scored_on_another_file_when_it_goes_on(tmp_path: Path) -> None:
    begin(make_settings(**options(tmp_path / "run")), {})
    found = settings_from({"dev_file": FOLDER / "dev.json"}, tmp_path / "run")
    assert found.dev_file == FOLDER / "dev.json" and found.train_file == options(tmp_path)["train_file"]


def test_only_a_second_interrupt_is_impatience(tmp_path: Path) -> None:
    """A scheduler and a launcher may both send SIGTERM."""
    stop = StopRequest(tmp_path)
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
    assert stop.asked()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_a_killed_run_was_writing_aside_is_removed_when_it_goes_on(tmp_path: Path) -> None:
    """A model that was being written takes as much of the disk as one that is."""
    settings = make_settings(**options(tmp_path / "run"))
    (tmp_path / "run" / ".model.abc.tmp" / "in").mkdir(parents=True)
    (tmp_path / "run" / ".config.json.def.tmp").touch()
    begin(settings, {})
    assert sorted(path.name for path in settings.out.iterdir()) == ["config.json", "plan.json", "versions.json"]


def test_a_model_that_the_disk_does_not_take_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that writes weights raises an error of its own, with the disk's in words."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = delivery._save_model

    def on_a_full_disk(*args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        try:
            save(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(delivery, "_save_model", on_a_full_disk)
    with pytest.raises(BigqaError, match=r"^cannot write .*/run/model: File too large$"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    fine_tune(settings_from({}, tmp_path / "run"), resume=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
