"""How far several runs are. In: runs that go on. Out: a bar for each and one for all; without a terminal, lines."""

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bigqa.console import console, say
from bigqa.files import read_json
from bigqa.language import put, shown, tr
from bigqa.runs.member import Member, last_line
from bigqa.units import format_seconds

LINE_S = 30.0
"""Without a terminal, between two lines of one run."""
LOOK_S = 1.0


class Live:
    """Shows runs as they go on. `total`: how many there are to be; none: not known."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._steps: dict[str, int] = {}
        self._said: dict[str, float] = {}
        self._began: dict[str, float] = {}

    def __enter__(self) -> "Live":
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def begun(self, member: Member) -> None:
        """Say that a run begins, or goes on."""
        going_on = (member.folder / "config.json").is_file()
        begins = tr("{member}: begun in {folder}", member=member.name, folder=member.folder)
        goes_on = tr("{member}: going on in {folder}", member=member.name, folder=member.folder)
        say(goes_on if going_on else begins)
        self._said[member.name] = self._began[member.name] = time.monotonic()
        self._tasks[member.name] = self._bars.add_task(shown(member.name), total=None, text="")

    def look(self, member: Member) -> None:
        """Show the last step of a run, where the time has come."""
        now, is_terminal = time.monotonic(), console.is_terminal
        if now - self._said[member.name] < (LOOK_S if is_terminal else LINE_S):
            return
        self._said[member.name] = now
        record = last_line(member.folder / "metrics.jsonl")
        if record is None:
            return
        steps = self._steps_of(member)
        figures = {"loss": record["loss"], "samples": record["samples_per_s"]}
        text = tr("loss {loss:.4f} · {samples:.2f} samples/s", **figures)
        if is_terminal:
            self._bars.update(self._tasks[member.name], completed=record["step"], total=steps, text=shown(text))
        else:
            say(
                tr(
                    "{member}: step {step}/{steps} · {figures}",
                    member=member.name,
                    step=record["step"],
                    steps=steps or "?",
                    figures=text,
                )
            )

    def ended(self, member: Member, figure: str) -> None:
        """Say how a run ended."""
        self._bars.remove_task(self._tasks.pop(member.name))
        took = format_seconds(time.monotonic() - self._began[member.name])
        if figure or member.code == 0:
            say(put("{member}: {figure} · {took}", member=member.name, figure=figure or tr("done"), took=took))
        elif member.is_stopped:
            say(tr("{member}: stopped and saved", member=member.name))
        else:
            say(tr("{member}: failed: {problem}", member=member.name, problem=member.problem))

    def _steps_of(self, member: Member) -> int | None:
        if member.name not in self._steps:
            plan = read_json(member.folder / "plan.json", tr("a run's plan"))
            self._steps[member.name] = plan.get("steps", 0)
        return self._steps[member.name] or None
