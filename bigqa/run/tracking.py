"""What a run tells to a tracker of experiments as well: Weights & Biases, MLflow, Trackio, by Accelerate's classes.

In: figures of steps, scores. Out: the same, there. Off by default. What fails there is told once and ends no run:
all is in the run's folder. A run that is gone on with goes on there too, where a tracker can.
"""

import importlib.util
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bigqa.engine.loop.recorder import Silent, figures_of
from bigqa.errors import BigqaError, UsageError, in_a_line
from bigqa.files import read_json, write_json
from bigqa.language import tr
from bigqa.settings import Settings

PROJECT = "bigqa"
FILE = "tracker.json"
"""Of a run's folder: what the run is called at its tracker."""
FIGURES = ("loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "memory_bytes", "peak_memory_bytes", "epoch")
PLACES: dict[str, Callable[[str, Path, str], dict[str, Any]]] = {
    "wandb": lambda name, folder, key: {"name": name, "dir": str(folder), "id": key, "resume": "allow"},
    "mlflow": lambda name, folder, key: {"run_name": name, "run_id": key or None},
    "trackio": lambda name, folder, key: {"name": f"{name}-{key}", "resume": "allow"},
}
"""Tracker -> how a run is named there: by its folder, and a key of its own."""


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is not known, or not installed, before anything is trained. Raises: BigqaError."""
    if name is None:
        return
    if name not in PLACES:
        raise UsageError(
            tr("--tracker {name} is not known; choose one of {places}", name=name, places=", ".join(PLACES))
        )
    if importlib.util.find_spec(name) is None:
        raise BigqaError(tr("--tracker {name} is not installed: pip install {name}", name=name))


class Tracked(Silent):
    """A recorder, and a tracker beside it."""

    def __init__(self, recorder: Silent, settings: Settings) -> None:
        self.recorder, self.settings = recorder, settings
        self._tracker: Any = None
        self._failed = False
        self._try(self._begin)

    def start(self, first_step: int, num_steps: int) -> None:
        """Begin at a step."""
        self.recorder.start(first_step, num_steps)

    def step(self, record: dict[str, Any]) -> None:
        """Take one step's figures."""
        self.recorder.step(record)
        self._log(record["step"], {name: record[name] for name in FIGURES})

    def scored(self, step: int, scores: Mapping[str, Any], place: str = "dev") -> None:
        """Take the scores after a step."""
        self.recorder.scored(step, scores, place)
        self._log(step, figures_of(scores, place))

    def say(self, text: str) -> None:
        """Tell the person something."""
        self.recorder.say(text)

    def note(self, text: str) -> None:
        """Log what the person has been told already."""
        self.recorder.note(text)

    def close(self) -> None:
        """Finish."""
        self._try(lambda: self._tracker.finish() if self._tracker is not None else None)
        self.recorder.close()

    def _begin(self) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        name, folder = str(self.settings.tracker), self.settings.out
        made = LOGGER_TYPE_TO_CLASS[name]
        where = PLACES[name](folder.name, folder, _key(folder, name))
        tracker = made(PROJECT, str(folder), **where) if made.requires_logging_directory else made(PROJECT, **where)
        tracker.start()
        values = self.settings.model_dump(mode="json", exclude_none=True, exclude={"ladder", "origin", "out"})
        tracker.store_init_configuration({one: _plain(value) for one, value in values.items()})
        self._tracker = tracker

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if self._tracker is not None and not self._failed:
            self._try(lambda: self._tracker.log(values, step=step))

    def _try(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:  # each tracker has its own, and a server's
            if not self._failed:
                self.recorder.say(
                    tr(
                        "--tracker {tracker} failed and is left alone: {error}",
                        tracker=self.settings.tracker,
                        error=in_a_line(error),
                    )
                )
            self._failed = True


def _key(folder: Path, name: str) -> str:
    """Return what a run is known by at its tracker; MLflow gives keys itself, so there each start is a run."""
    if name == "mlflow":
        return ""
    file = folder / FILE
    if not file.is_file():
        write_json(file, {"id": uuid.uuid4().hex[:12]})
    return str(read_json(file, "the tracker's file")["id"])


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
