"""Scores as a run trains: what they were, which is best, and whether it is time to end. In: scores. Out: a history.

`evaluations.jsonl` holds a line for each; a resumed run reads those of the steps that it goes on from, and so knows the
best and its patience. The best model is a checkpoint of its own, which the run's result is read back from.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bigqa.engine.loop.disk import tried
from bigqa.errors import BigqaError, UsageError
from bigqa.files import atomic_folder, write_text
from bigqa.language import tr

FILE, BEST = "evaluations.jsonl", "best"


class Evaluation:
    """Scores of one run. `score` gives those of the model as it is; only the main process calls it."""

    def __init__(
        self, folder: Path, every: int, score: Callable[[], Mapping[str, Any]], metric: str, *, least: bool = False,
        patience: int | None = None, keep_best: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.every, self.score, self.metric = folder, every, score, metric
        self.least, self.patience, self.keep_best = least, patience, keep_best
        self.history: list[dict[str, Any]] = []

    def begin(self, first_step: int) -> None:
        """Read what was found up to a step; what came after it is found again."""
        file = self.folder / FILE
        lines = file.read_bytes().splitlines() if file.is_file() else []
        self.history = [one for one in map(self._read, lines) if one["step"] <= first_step]
        is_last = bool(self.history) and self.best is self.history[-1]
        if self.keep_best and is_last and not self._has_best(self.history[-1]["step"]):
            self.history.pop()  # killed between the scores and the keeping of their model: both are done anew

    def _has_best(self, step: int) -> bool:
        return any(path.name.startswith("step-") and int(path.name[5:]) == step for path in self._all_kept())

    def _all_kept(self) -> list[Path]:
        folder = self.folder / BEST
        return list(folder.iterdir()) if folder.is_dir() else []

    def _read(self, line: bytes) -> dict[str, Any]:
        """Return the scores of a line. Raises: BigqaError where it is not as it was written."""
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            is_whole = isinstance(found, dict) and {"step", self.metric} <= found.keys()
            if is_whole and all(isinstance(value, int | float) for value in found.values()):
                return dict(found)
        raise BigqaError(
            tr(
                "{file} is damaged: a line of it is not the scores of a step; remove the line, or the file where the "
                "best so far does not matter",
                file=self.folder / FILE,
            )
        )

    def due(self, step: int, num_steps: int) -> bool:
        """Whether a completed step is followed by scores; the last one is."""
        scored = bool(self.history) and self.history[-1]["step"] == step
        return not scored and (step % self.every == 0 or step == num_steps)

    def add(self, step: int, scores: Mapping[str, Any]) -> bool:
        """Take the scores of a step; return whether they are the best so far. Raises: UsageError."""
        plain = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
        if self.metric not in plain:
            raise UsageError(
                tr(
                    "--metric {metric} is none of this task's scores: {plain}",
                    metric=self.metric,
                    plain=", ".join(sorted(plain)),
                )
            )
        before = self.best
        self.history.append({"step": step} | plain)
        lines = "".join(json.dumps(one) + "\n" for one in self.history)
        tried(self.folder, lambda: write_text(self.folder / FILE, lines))  # else the next ones bring these along
        return before is None or self.value(self.history[-1]) > self.value(before)

    @property
    def best(self) -> dict[str, Any] | None:
        """Return the first of the best scores, with its step."""
        return max(self.history, key=self.value, default=None)

    @property
    def ended(self) -> bool:
        """Whether patience is at its end."""
        if self.patience is None or self.best is None:
            return False
        return len(self.history) - 1 - self.history.index(self.best) >= self.patience

    def value(self, scores: Mapping[str, Any]) -> float:
        """Return what is to be large."""
        value = float(scores[self.metric])
        value = -value if self.least else value
        return value if math.isfinite(value) else -math.inf

    def keep(self, checkpoint: Path) -> None:
        """Keep a checkpoint as that of the best model, without a second copy of what is in it."""
        target = self.folder / BEST / checkpoint.name
        with atomic_folder(target, replace=True) as temporary:
            shutil.copytree(checkpoint, temporary, copy_function=_link, dirs_exist_ok=True)
        for other in self._all_kept():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
