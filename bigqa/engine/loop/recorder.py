"""What a run tells: a live line, `metrics.jsonl`, `log.txt` and TensorBoard events. In: one record per step.

Only the main process has a recorder that writes; the others have `Silent`.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bigqa.engine.loop.disk import Appended
from bigqa.engine.loop.events import Events
from bigqa.files import atomic_path
from bigqa.language import shown, tr
from bigqa.units import format_bytes, format_seconds

PLAIN_INTERVAL_S = 10.0
DRAWN = ("loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "memory_bytes")
"""Figures that TensorBoard shows."""


class Silent:
    """Records nothing."""

    def start(self, first_step: int, num_steps: int) -> None:
        """Begin at a step."""

    def step(self, record: dict[str, Any]) -> None:
        """Take one step's figures."""

    def scored(self, step: int, scores: Mapping[str, Any], place: str = "dev") -> None:
        """Take the scores after a step; `place`: before their names, dev as it trains, final of what is handed over."""

    def say(self, text: str) -> None:
        """Tell the person something."""

    def note(self, text: str) -> None:
        """Log what the person has been told already."""

    def close(self) -> None:
        """Finish."""


class Recorder(Silent):
    """Writes a run's folder and shows its progress."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console
        self._metrics = Appended(folder / "metrics.jsonl")
        self._log = Appended(folder / "log.txt")
        self._board = Events(folder / "tensorboard")
        self._bar = _progress_bar(console) if console.is_terminal else None
        self._last_plain = 0.0

    def start(self, first_step: int, num_steps: int) -> None:
        """Begin; what was recorded of steps that are run again is dropped."""
        if lost := _keep_steps_before(self._metrics.path, first_step):
            file = self._metrics.path
            self.say(tr("{file} is damaged: {lost} of its lines cannot be read and are dropped", file=file, lost=lost))
        self._started, self._first, self._num_steps = time.perf_counter(), first_step, num_steps
        if self._bar is not None:
            self._bar.start()
            self._bar_task = self._bar.add_task("train", total=num_steps, completed=first_step, text="")

    def step(self, record: dict[str, Any]) -> None:
        """Record one step; the file is whole after every line."""
        self._metrics.line(json.dumps(record))
        self._board.add(record["step"], {name: record[name] for name in DRAWN})
        self._show(record)

    def scored(self, step: int, scores: Mapping[str, Any], place: str = "dev") -> None:
        """Draw the scores after a step."""
        self._board.add(step, figures_of(scores, place))

    def _show(self, record: dict[str, Any]) -> None:
        text = _figures(record)
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=record["step"], text=shown(text))
            return
        now, is_last = time.perf_counter(), record["step"] == self._num_steps
        if is_last or now - self._last_plain >= PLAIN_INTERVAL_S:
            self._last_plain = now
            left = (now - self._started) / (record["step"] - self._first) * (self._num_steps - record["step"])
            step = tr("step {step}/{all}", step=record["step"], all=self._num_steps)
            self.say(tr("{step} · {figures} · {left} left", step=step, figures=text, left=format_seconds(left)))

    def say(self, text: str) -> None:
        """Print a line, above the bar, and log it."""
        self.console.print(shown(text), markup=False, highlight=False, soft_wrap=True)
        self.note(text)

    def note(self, text: str) -> None:
        """Write a line into the log alone."""
        self._log.line(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def close(self) -> None:
        """Finish the bar and the files."""
        if self._bar is not None:
            self._bar.stop()
        self._metrics.close()
        self._board.close()
        self._log.close()


def figures_of(scores: Mapping[str, Any], place: str) -> dict[str, float]:
    """Return the numbers of some scores, each named `place/name`."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, int | float) and name != "step"}
    return {f"{place}/{name}": value for name, value in numbers.items()}


def _figures(record: dict[str, Any]) -> str:
    return tr(
        "loss {loss:.4f} · {samples:.2f} samples/s · {tokens:.0f} tokens/s · {now} now, {peak} peak",
        loss=record["loss"],
        samples=record["samples_per_s"],
        tokens=record["tokens_per_s"],
        now=format_bytes(record["memory_bytes"]),
        peak=format_bytes(record["peak_memory_bytes"]),
    )


def _progress_bar(console: Console) -> Progress:
    columns = (
        TextColumn(shown(tr("step"))),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        TextColumn(shown(tr("left"))),
    )
    return Progress(*columns, console=console)


def _keep_steps_before(path: Path, first_step: int) -> int:
    """Drop what was recorded of later steps, and what cannot be read; return of how many lines that is."""
    if not path.is_file():
        return 0
    lines = path.read_bytes().split(b"\n")
    steps = [_step_of(line) for line in lines[:-1]]  # the last one was cut short when the run was killed, or is empty
    kept = [line for line, step in zip(lines, steps, strict=False) if step is not None and step <= first_step]
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
    return steps.count(None)


def _step_of(line: bytes) -> int | None:
    """Return the step of a line of metrics; none: it cannot be read."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
