"""The page of a run. In: its folder. Out: one HTML file: what it learned, how fast, in what memory, and how well.

Beside what was measured stands what was predicted. A run that goes on, or was killed, has a page of what is there.
"""

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

from bigqa.files import write_text
from bigqa.language import Text, joined, put, tr
from bigqa.pages.charts import Line, chart, smoothed
from bigqa.pages.made import made
from bigqa.pages.run import Record, Run, read_run
from bigqa.units import GIB, MIB, format_bytes, format_seconds

FILE = "report.html"
HIDDEN = ("ladder", "origin", "strategy", "task_options", "predicted_samples_per_s", "out")
NAMES = (tr("exact match"), tr("total"), tr("missing"), tr("tokens"), tr("step"), tr("accuracy"))
"""Of figures, as reports have them: `_spoken` says these."""
COUNTS = ("step", "total", "missing", "tokens")
"""Figures among scores that count what was scored."""
LATER = 0.3
"""Of the steps, the share at the end that a speed is read off: the first ones warm up."""


def write_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run's folder; return where. Raises: BigqaError where the folder is no run's."""
    file = out or folder / FILE
    write_text(file, run_page(read_run(folder)))
    return file


def run_page(run: Run) -> str:
    """Return the page."""
    scores = (run.report or {}).get("scores") or {}
    return made(
        "run.html.j2",
        title=f"{Path(run.config['model']).name}, {run.config.get('task', 'qa')}",
        state=_state(run),
        headline=_plain(scores),
        figures=_figures(run),
        charts=[one for one in (_loss(run), _rate(run), _speed(run), _memory(run), _scores(run)) if one],
        plan=_plan(run),
        switches=[_switch(one) for one in run.switches],
        evaluations=_evaluations(run),
        per_class=_per_class(scores),
        examples={kind: [_example(one) for one in run.examples if one["kind"] == kind] for kind in ("best", "worst")},
        going_on=_going_on(run),
        settings=_settings(run),
        versions=sorted(run.versions.items()),
    )


def _state(run: Run) -> str:
    if run.is_over:
        whole = run.done >= (run.num_steps or 0)
        ended = tr("done, ended after step {done} of {steps}", done=run.done, steps=run.num_steps)
        return tr("done") if whole else ended
    return tr("at step {done} of {steps}: it goes on, or was ended", done=run.done, steps=run.num_steps or "?")


def _plain(scores: Record) -> list[tuple[str, str]]:
    names = sorted((name for name, value in scores.items() if _is_number(value)), key=lambda name: name in COUNTS)
    return [(_spoken(name), _figure(scores[name])) for name in names]


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """Return name, measured and predicted of what a run took."""
    rows: list[tuple[str, str, str]] = []
    if peak := max((one["peak_memory_bytes"] for one in run.steps), default=None):
        predicted = run.predicted_bytes
        rows.append((tr("peak memory"), format_bytes(peak), _beside(predicted, peak, format_bytes)))
    if speed := _late(run, "tokens_per_s"):
        rows.append((tr("speed"), _tokens(speed), _beside(run.predicted_tokens_per_s, speed, _tokens)))
    seconds = sum(one["seconds"] for one in run.steps)
    if seconds:
        rows.append((tr("time in steps"), format_seconds(seconds), ""))
    if run.report:
        rows.append((tr("windows"), f"{run.report['windows']:,}", ""))
    steps = tr("{done:,} of {steps:,}", done=run.done, steps=run.num_steps) if run.num_steps else f"{run.done:,}"
    rows.append((tr("steps"), steps, ""))
    return rows


def _tokens(speed: float) -> Text:
    return tr("{count:,.0f} tokens/s", count=speed)


def _beside(predicted: float | None, measured: float, words: Any) -> str:
    if not predicted:
        return ""
    return tr("{figure} predicted ({off:+.1%})", figure=words(predicted), off=predicted / measured - 1)


def _late(run: Run, name: str) -> float | None:
    """Return the mean of a figure over the last steps."""
    kept = run.steps[-max(1, round(len(run.steps) * LATER)) :]
    return sum(one[name] for one in kept) / len(kept) if kept else None


def _points(run: Run, name: str) -> list[tuple[float, float]]:
    return [(one["step"], one[name]) for one in run.steps if _is_number(one.get(name))]


def _marks(run: Run) -> list[tuple[float, str]]:
    return [(one["after_step"], one["to"]) for one in run.switches if one.get("after_step")]


def _loss(run: Run) -> Any:
    points = _points(run, "loss")
    lines = [Line(tr("each step"), points, faint=True), Line(tr("loss"), smoothed(points))]
    return chart(tr("Loss"), lines, across=tr("step"), words=lambda one: f"{one:g}", marks=_marks(run))


def _rate(run: Run) -> Any:
    line = Line(tr("learning rate"), _points(run, "lr"))
    return chart(tr("Learning rate"), [line], across=tr("step"), words=_small, from_zero=True)


def _speed(run: Run) -> Any:
    points = _points(run, "tokens_per_s")
    lines = [Line(tr("each step"), points, faint=True), Line(tr("tokens a second"), smoothed(points))]
    lines += _level(tr("predicted, of full windows"), run.predicted_tokens_per_s, points)
    return chart(
        tr("Speed"), lines, across=tr("step"), words=lambda one: f"{one:,.0f}", from_zero=True, marks=_marks(run)
    )


def _memory(run: Run) -> Any:
    peaks = _points(run, "peak_memory_bytes")
    most = max([*(size for _, size in peaks), run.predicted_bytes or 0], default=0)
    unit, name = (GIB, "GiB") if most >= GIB else (MIB, "MiB")

    def of(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(step, size / unit) for step, size in points]

    what = tr("peak so far") if run.on_gpu else tr("peak so far, resident")
    lines = [Line(tr("now"), of(_points(run, "memory_bytes")), 1), Line(what, of(peaks))]
    lines += _level(tr("predicted peak"), (run.predicted_bytes or 0) / unit, peaks)
    return chart(
        tr("Memory"), lines, across=tr("step"), words=lambda one: f"{one:g} {name}", from_zero=True, marks=_marks(run)
    )


def _level(name: str, value: float | None, points: list[tuple[float, float]]) -> list[Line]:
    if not value or not points:
        return []
    return [Line(name, [(points[0][0], value), (points[-1][0], value)], 2, dashed=True)]


def _scores(run: Run) -> Any:
    names = [name for name in (run.evaluations or [{}])[0] if name not in COUNTS]
    shown = names[:3]
    lines = [
        Line(_spoken(name), [(one["step"], one[name]) for one in run.evaluations], at) for at, name in enumerate(shown)
    ]
    return chart(tr("Scores as it trained"), lines, across=tr("step"), words=lambda one: f"{one:g}", marks=_marks(run))


def _plan(run: Run) -> list[tuple[str, str]]:
    strategy = run.plan.get("strategy") or {}
    unset = (None, False, "none", "full precision")
    axes = [(_spoken(name), str(value)) for name, value in strategy.items() if value not in unset]
    names = ("num_processes", "global_batch", "micro_batch", "grad_accum")
    return axes + [(_spoken(name), str(run.plan[name])) for name in names if name in run.plan]


def _switch(one: Record) -> dict[str, str]:
    step = one.get("after_step")
    after = tr("after step {step}", step=step) if step else tr("from the last checkpoint")
    return {"time": one["time"], "after": after, "to": one["to"], "why": f"{one['where']}: {one['reason']}"}


def _evaluations(run: Run) -> tuple[list[str], list[list[str]]] | None:
    if not run.evaluations:
        return None
    names = list(run.evaluations[0])
    best = (run.report or {}).get("best") or {}
    rows = [[_figure(one.get(name)) for name in names] for one in run.evaluations]
    heads = [_spoken(name) for name in names]
    for row, one in zip(rows, run.evaluations, strict=True):
        row.append(tr("best") if one.get("step") == best.get("step") else "")
    return [*heads, ""], rows


def _per_class(scores: Record) -> list[tuple[str, list[str]]]:
    found = scores.get("per_class") or {}
    return [(label, [_figure(value) for value in one.values()]) for label, one in found.items()]


def _example(one: Record) -> dict[str, Any]:
    """Return an example with its text in pieces, each with the marks that it bears."""
    text, marks = one["text"], one["marks"]
    edges = sorted({0, len(text), *(edge for begin, end, _ in marks for edge in (begin, end))})
    pieces = []
    for begin, end in pairwise(edges):
        kinds = sorted({kind for low, high, kind in marks if low <= begin and end <= high})
        pieces.append((" ".join(kinds), text[begin:end]))
    sure = tr("{share:.0%} sure", share=one["certainty"]) if one["certainty"] is not None else ""
    figure = one["figure"] or tr("{share:.0%} right", share=one["value"])
    return one | {"pieces": pieces, "told": joined(" · ", filter(None, (figure, sure)))}


def _going_on(run: Run) -> dict[str, Any]:
    """Say what it would cost to go on: to the end, or with another epoch, in time, memory and disk."""
    each, steps = _late(run, "seconds"), run.num_steps
    peak = max((one["peak_memory_bytes"] for one in run.steps), default=0)
    lines: list[Text] = []
    commands: list[str] = []
    if not run.is_over and each and steps:
        left = steps - run.done
        time = format_seconds(left * each)
        lines.append(
            tr("{left:,} steps are left: about {time} at {each:.2f} s a step.", left=left, time=time, each=each)
        )
        commands.append(put("bigqa train --resume {folder}", folder=shlex.quote(str(run.folder))))
    epoch = run.plan.get("steps_per_epoch")
    if each and epoch:
        time = format_seconds(epoch * each)
        lines.append(tr("One more epoch is {steps:,} steps: about {time}, in the same memory.", steps=epoch, time=time))
    if each and steps:
        time = format_seconds(steps * each)
        lines.append(tr("The same run with another seed is about {time}, and scoring it.", time=time))
    if peak:
        sizes = {"peak": format_bytes(peak), "disk": _checkpoints(run)}
        lines.append(tr("It needs {peak} at its peak, and for checkpoints {disk} of disk.", **sizes))
    if run.is_over:
        text = tr("The learning rate has come to its end: to learn more, train anew from this model, or for longer.")
        lines.append(text)
        words = ["bigqa", "train", "--model", str(run.folder / "model"), "--train-file", run.config["train_file"]]
        commands.append(shlex.join([*words, "--out", f"{run.folder}-more"]))
    return {"lines": lines, "commands": commands}


def _checkpoints(run: Run) -> str:
    """Return what the checkpoints take that are kept, by those that are there; else by the model's weights."""
    folder = run.folder / "checkpoints"
    each = [_size(one) for one in folder.iterdir()] if folder.is_dir() else []
    if each:
        return format_bytes(max(each) * run.config.get("keep", 2))
    weights = _size(run.folder / "model")
    most = format_bytes(3 * weights * run.config.get("keep", 2))
    return tr("up to {size}", size=most) if weights else tr("some")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0


def _settings(run: Run) -> list[tuple[str, str]]:
    shown = {name: value for name, value in run.config.items() if value is not None and name not in HIDDEN}
    every = shown | run.config.get("task_options", {})
    return [(name.replace("_", "-"), str(value)) for name, value in every.items()]


def _spoken(name: str) -> str:
    """Return a figure's name as people say it, in their language where the catalogue has it."""
    return put(name.replace("_", " "))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value if value is not None else "")


def _small(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if value else "0"
