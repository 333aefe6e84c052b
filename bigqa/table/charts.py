"""Charts of the benchmark. In: rows, grades. Out: SVG texts by name, the same for the same reports.

No date, no random names, text left as text: `bigqa table --check` can compare a chart with its file.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from bigqa.language import shown, tr
from bigqa.show.probe import TIERS
from bigqa.table.grade import Grade
from bigqa.table.regret import Choice, choices_at, speed_of
from bigqa.table.rows import Row
from bigqa.table.text import in_order
from bigqa.units import GIB, format_bytes

INK, PAPER = "#1b1f24", "#ffffff"
TIER_COLOURS = {0: "#4c78a8", 1: "#f2a541", 2: "#e45756"}
COLOURS = ("#4c78a8", "#e45756", "#3d9a6b", "#b279a2", "#f2a541", "#72b7b2")
Curves = dict[str, list[tuple[Choice, float]]]
PEAK = tr("measured peak, GiB")
NO_CAP = 2**62
MARKERS = "osD^vP"
SIZE = (7.2, 4.2)
STYLE: Any = {
    "svg.hashsalt": "bigqa",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def charts_of(rows: Sequence[Row], grades: Sequence[Grade]) -> dict[str, str]:
    """Return every chart that the rows have something for: name -> SVG."""
    found: dict[str, str] = {}
    ran = [row for row in in_order(rows) if row.measured_bytes and row.shows_need]
    for (model, processor), members in groupby(
        _uncapped([row for row in ran if row.is_timed]), lambda row: (row.model, row.processor)
    ):
        points = list(members)
        found[_name("throughput", model, processor)] = _drawn(_throughput, points)
    if ran:
        found["memory"] = _drawn(_memory, ran)
    for grade in grades:
        curves = speeds_kept(grade, rows)
        if curves:
            found[_name("caps", grade.processor)] = _drawn(_kept, grade, curves)
    return found


def front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other beats in both memory and speed, the smallest first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.measured_bytes or 0, -speed_of(row))):
        if not found or speed_of(row) > speed_of(found[-1]):
            found.append(row)
    return found


def speeds_kept(grade: Grade, rows: Sequence[Row]) -> Curves:
    """Return, by workload, each choice with its measured speed, as a share of the best without a cap.

    The best is the fastest measured of the lowest tier that ran at all, so a plan of a higher tier can be above it.
    """
    members = [row for row in rows if row.processor == grade.processor and row.on_gpu == (grade.kind == "gpu")]
    best = {choice.workload: speed_of(choice.best) for choice in choices_at(members, NO_CAP) if choice.best}
    curves: Curves = {}
    for choice in (choice for cap in grade.caps for choice in cap.choices):
        work = choice.workload
        if work in best:
            speed = speed_of(choice.chosen) if choice.chosen and choice.kind == "plan" else 0.0
            label = f"{work.model}, {work.global_batch} x {work.seq_len}"
            curves.setdefault(label, []).append((choice, speed / best[work]))
    return curves


def _throughput(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the runs, and for each tier the front of what changes no more than that."""
    fronts = {tier: front([row for row in rows if row.tier <= tier]) for tier in sorted({row.tier for row in rows})}
    for tier, best in fronts.items():
        colour, members = TIER_COLOURS[tier], [row for row in rows if row.tier == tier]
        axes.step([_gib(row) for row in best], [speed_of(row) for row in best], where="post", color=colour, lw=0.8)
        places = [_gib(row) for row in members], [speed_of(row) for row in members]
        axes.scatter(*places, s=26, color=colour, zorder=3, label=shown(TIERS[tier]))
    axes.margins(0.12)
    axes.set_ylim(bottom=0)
    named = {row.report.case.name: row for best in fronts.values() for row in best}
    for row in _apart(sorted(named.values(), key=_gib), axes):
        case = row.report.case
        text = f"{case.strategy}, {case.micro_batch} x {case.seq_len}"
        # Names at the right edge are set to the left of their points.
        left, right = axes.get_xlim()
        shift, side = ((5, -11), "left") if _gib(row) < left + 0.75 * (right - left) else ((-5, 5), "right")
        place = _gib(row), speed_of(row)
        axes.annotate(text, place, shift, textcoords="offset points", fontsize=7.5, ha=side)
    title = tr("{model} on {device}", model=rows[0].model, device=rows[0].processor)
    axes.set(xlabel=shown(PEAK), ylabel=shown(tr("samples/s")), title=shown(title))
    axes.legend(title=shown(tr("changes")), alignment="left", loc="upper left", bbox_to_anchor=(1, 1))


def _memory(axes: Any, rows: Sequence[Row]) -> None:
    processors = sorted({(row.on_gpu, row.processor) for row in rows})
    for index, (on_gpu, processor) in enumerate(processors):
        members = [row for row in rows if (row.on_gpu, row.processor) == (on_gpu, processor)]
        places = [_gib(row) for row in members], [row.predicted_bytes / GIB for row in members]
        axes.scatter(*places, s=20, marker=_of(MARKERS, index), color=_of(COLOURS, index), label=processor, alpha=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    sizes = [size / GIB for row in rows for size in (row.measured_bytes or 0, row.predicted_bytes)]
    ends = min(sizes) / 1.15, max(sizes) * 1.15
    axes.plot(ends, ends, color=INK, lw=0.8, zorder=0, label=shown(tr("measured = predicted")))
    axes.set(xlim=ends, ylim=ends, xlabel=shown(PEAK), ylabel=shown(tr("predicted peak, GiB")))
    axes.set_title(shown(tr("Memory of {count} runs, predicted and measured", count=len(rows))))
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _kept(axes: Any, grade: Grade, curves: Curves) -> None:
    for index, (label, curve) in enumerate(curves.items()):
        colour = _of(COLOURS, index)
        caps, kept = [choice.cap_bytes / GIB for choice, _ in curve], [share for _, share in curve]
        axes.plot(caps, kept, marker=_of(MARKERS, index), ms=4.5, color=colour, lw=1.2, label=label)
    sizes = [cap.size_bytes for cap in grade.caps]
    axes.set_xscale("log", base=2)
    axes.set_xticks([size / GIB for size in sizes], [format_bytes(size).replace(".00 GiB", "") for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.05 * max(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    title = tr("What the plan keeps of the speed, {device}", device=grade.processor)
    axes.set(xlabel=shown(tr("memory cap, GiB")), ylabel=shown(tr("speed kept")), title=shown(title))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _apart(rows: Sequence[Row], axes: Any) -> list[Row]:
    """Return those rows whose labels do not cover each other; the ends of the front come first."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    found: dict[int, tuple[float, float]] = {}
    for index in sorted(range(len(rows)), key=lambda i: (i not in (0, len(rows) - 1), i)):
        x, y = (_gib(rows[index]) - left) / (right - left), (speed_of(rows[index]) - bottom) / (top - bottom)
        if all(abs(x - x0) > 0.3 or abs(y - y0) > 0.05 for x0, y0 in found.values()):
            found[index] = x, y
    return [rows[index] for index in sorted(found)]


def _uncapped(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.report.case.cap_bytes is None]


def _gib(row: Row) -> float:
    return (row.measured_bytes or 0) / GIB


def _of(choices: Sequence[str], index: int) -> str:
    return choices[index % len(choices)]


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _name(*words: str) -> str:
    return re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-").lower()


def _drawn(draw: Callable[..., None], *what: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no screen is needed, and nothing is kept

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in Hangul is text, drawn by whoever shows it
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.add_subplot(), *what)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
