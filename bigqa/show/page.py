"""The page of `bigqa probe --html`. In: what was found. Out: one HTML file that needs nothing beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.console import page_environment
from bigqa.language import tr
from bigqa.memory.timeline import Timeline
from bigqa.plan.candidates import Candidate
from bigqa.plan.probe import Probe
from bigqa.show.probe import PROBE_COLUMNS, cells, plan_text, title
from bigqa.units import format_bytes

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = {
    "weights": "#4c78a8",
    "optimizer": "#72b7b2",
    "gradients": "#f2a541",
    "activations": "#e45756",
    "temporaries": "#9d9da1",
}
WORDS = (
    tr("weights"), tr("optimizer"), tr("gradients"), tr("activations"), tr("temporaries"),
    tr("model"), tr("set-up"), tr("states"), tr("ready"), tr("forward"), tr("backward"), tr("clip"),
)  # fmt: skip
"""Kinds of memory, and phases of a step, as records name them."""
WIDTH, HEIGHT = 960.0, 260.0
"""Of the chart's drawing area, in its own units."""


@dataclass(frozen=True)
class Chart:
    """Memory of one step over time, as shapes."""

    strategy: str
    areas: list[tuple[str, str, str]]
    """(category, colour, points of the polygon), from the bottom up."""
    phases: list[tuple[str, float]]
    """(phase, where it begins)."""
    peak: tuple[float, float, str]
    """Where the most is, and how much."""
    limit: float | None
    """Height of the limit, where it is within the chart."""
    ticks: list[tuple[float, str]]


def probe_page(found: Probe) -> str:
    """Return the page."""
    environment = page_environment(TEMPLATES)
    rows = [
        {"cells": cells(found, c), "keys": _sort_keys(c), "fits": c.fits, "chosen": c is found.chosen}
        for c in found.candidates
    ]
    shown = found.chosen or found.closest
    return environment.get_template("probe.html.j2").render(
        title=title(found),
        columns=PROBE_COLUMNS,
        rows=rows,
        text=plan_text(found, Path("plan.json")),
        bars=[bar for c in found.candidates if (bar := _bar(c))],
        chart=_chart(shown, found.timeline(shown)) if shown else None,
        width=WIDTH,
        height=HEIGHT,
        colours=COLOURS,
    )


def _bar(candidate: Candidate) -> dict[str, Any] | None:
    """Return a strategy's peak as a share of its limit; a bar ends at half as much again."""
    if candidate.memory is None or not candidate.limit_bytes:
        return None
    share = candidate.peak_bytes / candidate.limit_bytes
    return {
        "name": candidate.name,
        "share": min(share, 1.5) / 1.5,
        "over": share > 1,
        "fits": candidate.fits,
        "text": f"{format_bytes(candidate.peak_bytes)} ({share:.0%})",
    }


def _chart(candidate: Candidate, timeline: Timeline) -> Chart:
    totals = timeline.totals
    top = max(totals) * 1.08
    step = WIDTH / max(1, len(totals) - 1)

    def height_of(size_bytes: float) -> float:
        return HEIGHT * (1 - size_bytes / top)

    areas, below = [], [0] * len(totals)
    for name, colour in COLOURS.items():
        above = [low + size for low, size in zip(below, timeline.by_category[name], strict=True)]
        outline = [(i * step, height_of(v)) for i, v in enumerate(above)]
        outline += [(i * step, height_of(v)) for i, v in reversed(list(enumerate(below)))]
        areas.append((name, colour, " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)))
        below = above
    phases = [(phase, i * step) for i, phase in enumerate(timeline.phases) if i == 0 or timeline.phases[i - 1] != phase]
    at = totals.index(max(totals))
    return Chart(
        strategy=candidate.name,
        areas=areas,
        phases=phases,
        peak=(at * step, height_of(totals[at]), format_bytes(totals[at])),
        limit=height_of(candidate.limit_bytes) if candidate.limit_bytes <= top else None,
        ticks=[(height_of(top * share), format_bytes(top * share)) for share in (0.25, 0.5, 0.75)],
    )


def _sort_keys(candidate: Candidate) -> tuple[float | str, ...]:
    host = candidate.memory.host_bytes if candidate.memory else 0
    gpu = candidate.peak_bytes if candidate.strategy.device == "cuda" else 0
    numbers = (candidate.tier, candidate.micro_batch, gpu, host, candidate.samples_per_s, candidate.run_s)
    return (candidate.name, *numbers, candidate.verdict)
