"""What people see of several runs when they are over. In: results. Out: tables, and what to do with them in words."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bigqa.console import say, show
from bigqa.language import tr
from bigqa.runs.statistics import CONFIDENCE
from bigqa.units import format_seconds

FIGURES = ((tr("mean"), "mean"), (tr("spread"), "spread"), (tr("95% from"), "low"), (tr("95% to"), "high"))
"""What is said of the seeds' scores -> its name among the figures."""
STATES = {
    "complete": "", "pruned": tr("ended early"), "failed": tr("failed"), "running": tr("running"),
    "waiting": tr("waiting"),
}  # fmt: skip
"""Of trials."""


def show_seeds(found: Mapping[str, Any], out: Path) -> None:
    """Print the scores of each run, what they say together, and where the best model is."""
    names = list(found["scores"])
    if not names:
        say(tr("{count} runs are done; without --dev-file they have no scores", count=len(found["runs"])))
        return
    show(seeds_table(found))
    metric, figures = found["metric"], found["scores"].get(found["metric"])
    if figures is not None and figures["spread"] is not None:
        say(
            tr(
                "{metric}: {mean:.2f} ± {half:.2f} ({confidence:.0%} confidence for the mean over "
                "seeds, Student's t, {count} runs)",
                metric=metric,
                mean=figures["mean"],
                half=(figures["high"] - figures["low"]) / 2,
                confidence=CONFIDENCE,
                count=figures["count"],
            )
        )
    say(tr("best model: {out}", out=out / found["best"] / "model"))
    if found["ensemble"]:
        say(tr("answers of all runs together: {out}", out=out / "ensemble"))
    say(tr("page: {out}", out=out / "page.html"))


def seeds_table(found: Mapping[str, Any]) -> Table:
    """Show a row for each seed, then mean, spread, interval, and the ensemble."""
    names = list(found["scores"])
    table = _table(tr("seed"), *(name.replace("_", " ") for name in names), tr("time"))
    for number, row in found["runs"].items():
        best = f"seed-{number}" == found["best"]
        cells = [figure(row["scores"].get(name)) for name in names]
        table.add_row(number, *cells, format_seconds(row["seconds"]), style="bold green" if best else None)
    for number in found["failed"]:
        table.add_row(number, *[tr("failed")] * len(names), "", style="red")
    for label, key in FIGURES:
        table.add_row(label, *(figure(found["scores"][name][key]) for name in names), "")
    if found["ensemble"]:
        table.add_row(tr("ensemble"), *(figure(found["ensemble"].get(name)) for name in names), "")
    return table


def show_sweep(found: Mapping[str, Any], out: Path) -> None:
    """Print the trials, the best first, and the command that trains with the best settings."""
    params = list(found["asked"]["search"])
    table = _table(tr("trial"), found["metric"], *(name.replace("_", "-") for name in params), tr("time"), "")
    for row in found["trials"]:
        cells = [setting(row["params"].get(name)) for name in params]
        told = STATES[row["state"]]
        took = format_seconds(row["seconds"]) if row["seconds"] is not None else ""
        value = figure(row["value"] if row["value"] is not None else _last(row["curve"]))
        style = "bold green" if row["trial"] == found["best"] else "dim" if row["value"] is None else None
        table.add_row(str(row["trial"]), value, *cells, took, told, style=style)
    show(table, spare=(tr("time"),))
    for row in found["trials"]:
        if row["problem"]:
            say(tr("trial {number} failed: {problem}", number=row["trial"], problem=row["problem"]))
    if found["best"] is None:
        say(tr("no trial has a result"))
    else:
        best = next(row for row in found["trials"] if row["trial"] == found["best"])
        model = out / best["folder"] / "model"
        say(
            tr("best model: {model}", model=model)
            if model.is_dir()
            else tr("best model: on {host}, in its {folder}/model", host=best["host"], folder=best["folder"])
        )
        say(tr("other seeds of the best settings:"))
        say(f"  {shlex.join(['bigqa', 'seeds', '5', *found['options'], '--out', str(out) + '-seeds'])}")
    say(tr("page: {out}", out=out / "page.html"))


def setting(value: Any) -> str:
    """Return a setting as a cell has it."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _last(curve: Mapping[str, float]) -> float | None:
    return curve[max(curve, key=int)] if curve else None


def figure(value: float | None) -> str:
    """Return a score as a cell has it."""
    if value is None:
        return ""
    return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, name in enumerate(names):
        table.add_column(name, no_wrap=True, justify="left" if index == 0 else "right")
    return table
