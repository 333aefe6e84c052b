"""The page of several runs. In: what they came to, their folders. Out: one HTML file with the table and the charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigqa.files import read_json, write_text
from bigqa.language import Text, joined, put, tr
from bigqa.pages.charts import Dot, Line, chart, smoothed
from bigqa.pages.made import made
from bigqa.pages.run import read_run
from bigqa.runs.show import FIGURES, STATES, figure, setting
from bigqa.units import format_seconds

PAGE, SUMMARY, TRIALS = "page.html", "summary.json", "trials.json"
MOST_CURVES = 12


def rewritten(folder: Path, out: Path | None = None) -> Path | None:
    """Write the page of a folder of several runs anew; none where it is not one whose results are there."""
    for name, page in ((SUMMARY, seeds_page), (TRIALS, sweep_page)):
        if (folder / name).is_file():
            file = out or folder / PAGE
            write_text(file, page(read_json(folder / name, tr("what the runs came to")), folder))
            return file
    return None


def seeds_page(found: Mapping[str, Any], folder: Path) -> str:
    """Return the page of runs that differ in their seeds."""
    names = list(found["scores"])
    rows = [
        {
            "cells": [number, *(figure(row["scores"].get(name)) for name in names), format_seconds(row["seconds"])],
            "class": "strong" if f"seed-{number}" == found["best"] else "",
        }
        for number, row in found["runs"].items()
    ]
    for label, key in FIGURES:
        rows.append({"cells": [label, *(figure(found["scores"][name][key]) for name in names), ""], "class": ""})
    if found["ensemble"]:
        cells = [tr("ensemble"), *(figure(found["ensemble"].get(name)) for name in names), ""]
        rows.append({"cells": cells, "class": "strong"})
    return made(
        "several.html.j2",
        title=tr("{count} seeds", count=len(found["runs"])),
        text=_seeds_text(found),
        heads=[tr("seed"), *(name.replace("_", " ") for name in names), tr("time")],
        rows=rows,
        charts=[one for one in (_each_seed(found), _losses(found, folder)) if one],
        problems=[(_seed(number), problem) for number, problem in found["failed"].items()],
        command="",
    )


def _seed(number: str) -> Text:
    return tr("seed {number}", number=number)


def _seeds_text(found: Mapping[str, Any]) -> list[str]:
    metric = found["metric"].replace("_", " ")
    one = found["scores"].get(found["metric"])
    lines: list[str] = []
    if one is not None and one["spread"] is not None:
        figures = {"mean": one["mean"], "half": (one["high"] - one["low"]) / 2, "count": one["count"]}
        lines.append(
            tr("{metric} {mean:.2f} ± {half:.2f}: mean over {count} seeds, 95% confidence.", metric=metric, **figures)
        )
        lines.append(tr("It tells what other seeds would do on these data, and nothing of other data."))
    if left := found.get("left"):
        lines.append(tr("{count} more are not over yet.", count=left))
    if found["best"]:
        lines.append(tr("The best model is in {folder}.", folder=f"{found['best']}/model"))
    return lines


def _each_seed(found: Mapping[str, Any]) -> Any:
    """Draw the score of each seed, the mean, and the interval that the mean lies in."""
    metric = found["metric"]
    rows = [(number, row["scores"][metric]) for number, row in found["runs"].items() if metric in row["scores"]]
    if not rows:
        return None
    last, figures = len(rows) - 1, found["scores"][metric]
    dots = [
        Dot(
            (float(at), value),
            tr("seed {number}: {value:.2f}", number=number, value=value),
            strong=f"seed-{number}" == found["best"],
        )
        for at, (number, value) in enumerate(rows)
    ]
    lines = [Line(tr("mean"), [(0, figures["mean"]), (last, figures["mean"])])]
    if figures["low"] is not None:
        lines.append(Line(tr("95% of the mean"), [(0, figures["low"]), (last, figures["low"])], 2, dashed=True))
        lines.append(Line("", [(0, figures["high"]), (last, figures["high"])], 2, dashed=True))
    names = [number for number, _ in rows]
    return chart(metric.replace("_", " "), lines, dots, across=tr("seed"), words=lambda one: f"{one:g}", names=names)


def _losses(found: Mapping[str, Any], folder: Path) -> Any:
    lines = []
    for at, number in enumerate(found["runs"]):
        steps = read_run(folder / f"seed-{number}").steps
        lines.append(Line(_seed(number), smoothed([(one["step"], one["loss"]) for one in steps]), at))
    return chart(tr("Loss"), lines[:MOST_CURVES], across=tr("step"), words=lambda one: f"{one:g}")


def sweep_page(found: Mapping[str, Any], folder: Path) -> str:
    """Return the page of a search."""
    params, metric = list(found["asked"]["search"]), found["metric"].replace("_", " ")
    rows = [
        {
            "cells": [
                str(row["trial"]),
                figure(_value(row)),
                *(setting(row["params"].get(name)) for name in params),
                format_seconds(row["seconds"]) if row["seconds"] is not None else "",
                STATES[row["state"]],
            ],
            "class": "strong" if row["trial"] == found["best"] else "no" if row["value"] is None else "",
        }
        for row in found["trials"]
    ]
    return made(
        "several.html.j2",
        title=tr("{name}: {count} trials", name=found["name"], count=len(found["trials"])),
        text=_sweep_text(found),
        heads=[tr("trial"), metric, *(name.replace("_", "-") for name in params), tr("time"), ""],
        rows=rows,
        charts=[one for one in (_history(found), _curves(found), *(_axis(found, name) for name in params)) if one],
        problems=[
            (tr("trial {number}", number=row["trial"]), row["problem"]) for row in found["trials"] if row["problem"]
        ],
        command=" ".join(["bigqa", "train", *found["options"], "--out", "RUN"]) if found["best"] is not None else "",
    )


def _sweep_text(found: Mapping[str, Any]) -> list[str]:
    states = [row["state"] for row in found["trials"]]
    counts = {name: states.count(name) for name in STATES}
    told = (
        ("complete", tr("{count} have a result", count=counts["complete"])),
        ("pruned", tr("{count} were ended early", count=counts["pruned"])),
        ("failed", tr("{count} failed", count=counts["failed"])),
        ("running", tr("{count} go on", count=counts["running"])),
        ("waiting", tr("{count} wait", count=counts["waiting"])),
    )
    lines: list[str] = []
    if states:
        lines.append(put("{counts}.", counts=joined(", ", [words for name, words in told if counts[name]])))
    best = next((row for row in found["trials"] if row["trial"] == found["best"]), None)
    if best is not None:
        name, value = found["metric"].replace("_", " "), figure(best["value"])
        lines.append(
            tr("The best is trial {number}: {metric} {value}.", number=best["trial"], metric=name, value=value)
        )
        lines.append(tr("It was chosen among others on the same dev file, so another file will be a little less kind."))
    return lines


def _value(row: Mapping[str, Any]) -> float | None:
    """Return a trial's result, or the last score that was seen of it."""
    if row["value"] is not None:
        return float(row["value"])
    return row["curve"][max(row["curve"], key=int)] if row["curve"] else None


def _valued(found: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], float]]:
    rows = sorted(found["trials"], key=lambda row: row["trial"])
    return [(row, value) for row in rows if (value := _value(row)) is not None]


def _dot(row: Mapping[str, Any], at: float, value: float, best: Any) -> Dot:
    params = ", ".join(f"{name.replace('_', '-')} {setting(one)}" for name, one in row["params"].items())
    colour = 0 if row["value"] is not None else 1
    words = tr("trial {number}: {value:.4g} ({params})", number=row["trial"], value=value, params=params)
    return Dot((at, value), words, colour, strong=row["trial"] == best)


def _history(found: Mapping[str, Any]) -> Any:
    """Draw each trial's value, and the best so far."""
    dots, best, so_far = [], None, []
    for row, value in _valued(found):
        dots.append(_dot(row, row["trial"], value, found["best"]))
        if row["value"] is not None:
            better = min if found["least_is_best"] else max
            best = value if best is None else better(best, value)
            so_far.append((float(row["trial"]), best))
    lines = [Line(tr("best so far"), so_far, 3)] if so_far else []
    return chart(tr("Trials"), lines, dots, across=tr("trial"), words=lambda one: f"{one:g}")


def _curves(found: Mapping[str, Any]) -> Any:
    """Draw scores as trials went on, by the share of each; those ended early are pale."""
    lines: list[Line] = []
    for row in found["trials"][: 3 * MOST_CURVES]:
        curve = [(int(part) / found["parts"], value) for part, value in sorted(row["curve"].items(), key=_part)]
        if row["value"] is not None:
            curve.append((1.0, row["value"]))
        is_best = row["trial"] == found["best"]
        name = tr("best") if is_best else tr("ended early") if row["state"] == "pruned" else tr("others")
        known = any(line.name == name for line in lines)
        colour = 3 if is_best else 1 if row["state"] == "pruned" else 0
        lines.append(Line("" if known else name, curve, colour, faint=False))
    return chart(tr("Scores as trials went on"), lines, across=tr("share of the trial"), words=lambda one: f"{one:g}")


def _part(item: tuple[str, float]) -> int:
    return int(item[0])


def _axis(found: Mapping[str, Any], name: str) -> Any:
    """Draw values over one of the settings."""
    rows = [(row, value) for row, value in _valued(found) if name in row["params"]]
    axis = found["asked"]["search"][name]
    numbers = all(isinstance(row["params"][name], int | float) for row, _ in rows)
    choices = [] if numbers else list(dict.fromkeys(axis if isinstance(axis, list) else ()))
    dots = [
        _dot(row, float(row["params"][name] if numbers else choices.index(row["params"][name])), value, found["best"])
        for row, value in rows
    ]
    spoken = name.replace("_", "-")
    log = isinstance(axis, dict) and bool(axis["log"])
    names: Sequence[str] = [Path(str(one)).name for one in choices]
    return chart(
        tr("By {name}", name=spoken), (), dots, across=spoken, words=lambda one: f"{one:g}", log_across=log, names=names
    )
