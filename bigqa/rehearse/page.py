"""The page of `bigqa rehearse --html`. In: what was found. Out: one HTML file that needs nothing beside it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigqa.console import page_environment
from bigqa.language import joined, tr
from bigqa.nullgpu.cards import NullGpu
from bigqa.rehearse.render import AUTOGRAD, headline, notes, phase_of, shortage_lines
from bigqa.rehearse.report import Curves, Rehearsal
from bigqa.units import MIB, format_bytes

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = {
    "weights": "#4c78a8",
    "optimizer": "#72b7b2",
    "gradients": "#f2a541",
    "activations": "#e45756",
    "temporaries": "#9d9da1",
    "workspaces": "#b279a2",
    "other": "#d6a5c9",
}
"""Of kinds, as on the page of `bigqa probe`, which has the first five."""
WORDS = (tr("workspaces"), tr("other"))
WIDTH, HEIGHT = 960.0, 260.0


def rehearsal_page(found: Sequence[Rehearsal], gpu: NullGpu, command: Sequence[str]) -> str:
    """Return the page."""
    environment = page_environment(TEMPLATES)
    return environment.get_template("rehearsal.html.j2").render(
        title=tr("{command} on {card}", command=shlex.join(command), card=gpu.card.name),
        runs=[_run(run, gpu) for run in found],
        colours=COLOURS,
        width=WIDTH,
        height=HEIGHT,
    )


def _run(run: Rehearsal, gpu: NullGpu) -> dict[str, Any]:
    figures = {
        tr("allocated by tensors"): run.allocated_bytes,
        tr("reserved by torch"): run.reserved_bytes,
        tr("as NVML shows it"): run.nvml_bytes,
        tr("pinned host memory"): run.pinned_bytes,
        tr("managed memory"): run.managed_bytes,
        tr("host memory of the process"): run.host_bytes,
    }
    rows = [
        (
            format_bytes(group.size_bytes),
            group.kind,
            group.count,
            group.where or AUTOGRAD,
            group.text,
            group.own if group.own != group.where else "",
        )
        for group in run.largest
        if group.size_bytes >= MIB
    ]
    by_size = sorted(run.by_kind.items(), key=lambda item: -item[1])
    return {
        "bound": {"least": tr("everything done at once"), "most": tr("done only when the host waits")}[run.bound],
        "headline": headline(run, gpu),
        "shortage": joined("\n", shortage_lines(run.shortage)) if run.shortage else "",
        "notes": notes(run),
        "figures": [(name, format_bytes(size)) for name, size in figures.items() if size >= MIB],
        "kinds": [(kind, format_bytes(size)) for kind, size in by_size if size >= MIB],
        "at": phase_of(run.phase, run.step or None),
        "largest": rows,
        "chart": _chart(run.curves, gpu.free_bytes),
    }


def _chart(curves: Curves, limit: int) -> dict[str, Any] | None:
    """Return the curves as shapes; none where nothing was allocated."""
    totals = [sum(sizes) for sizes in zip(*curves.by_kind.values(), strict=True)]
    if not totals or not max(totals):
        return None
    top = max(totals) * 1.08
    step = WIDTH / max(1, len(totals) - 1)

    def height_of(size: float) -> float:
        return HEIGHT * (1 - size / top)

    areas, below = [], [0] * len(totals)
    for kind, colour in COLOURS.items():
        above = [low + size for low, size in zip(below, curves.by_kind[kind], strict=True)]
        outline = [(n * step, height_of(size)) for n, size in enumerate(above)]
        outline += [(n * step, height_of(size)) for n, size in reversed(list(enumerate(below)))]
        if any(curves.by_kind[kind]):
            areas.append((kind, colour, " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)))
        below = above
    return {
        "areas": areas,
        "steps": [
            (tr("step {number}", number=number) if number else tr("set-up"), at * step) for number, at in _steps(curves)
        ],
        "backwards": [at * step for name, _, at in curves.phases if name == "backward"],
        "peak": (curves.peak * step, height_of(totals[curves.peak]), format_bytes(totals[curves.peak])),
        "limit": height_of(limit) if limit <= top else None,
        "ticks": [(height_of(top * share), format_bytes(top * share)) for share in (0.25, 0.5, 0.75)],
    }


def _steps(curves: Curves) -> list[tuple[int, int]]:
    """Return where each step begins."""
    begun: dict[int, int] = {}
    for _, number, at in curves.phases:
        begun.setdefault(number, at)
    return list(begun.items())
