"""The page of `bigqa rehearse --html`. In: what was found. Out: one HTML file that needs nothing beside it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from bigqa.nullgpu.cards import NullGpu
from bigqa.rehearse.render import PHASES, headline, notes, shortage_lines
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
WIDTH, HEIGHT = 960.0, 260.0


def rehearsal_page(found: Sequence[Rehearsal], gpu: NullGpu, command: Sequence[str]) -> str:
    """Return the page."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    return environment.get_template("rehearsal.html.j2").render(
        title=f"{shlex.join(command)} on {gpu.card.name}",
        runs=[_run(run, gpu) for run in found],
        colours=COLOURS,
        width=WIDTH,
        height=HEIGHT,
    )


def _run(run: Rehearsal, gpu: NullGpu) -> dict[str, Any]:
    figures = {
        "allocated by tensors": run.allocated_bytes,
        "reserved by torch": run.reserved_bytes,
        "as NVML shows it": run.nvml_bytes,
        "pinned host memory": run.pinned_bytes,
        "managed memory": run.managed_bytes,
        "host memory of the process": run.host_bytes,
    }
    rows = [
        (
            format_bytes(group.size_bytes),
            group.kind,
            group.count,
            group.where or "autograd's own thread",
            group.text,
            group.own if group.own != group.where else "",
        )
        for group in run.largest
        if group.size_bytes >= MIB
    ]
    by_size = sorted(run.by_kind.items(), key=lambda item: -item[1])
    return {
        "bound": {"least": "everything done at once", "most": "done only when the host waits"}[run.bound],
        "headline": headline(run, gpu),
        "shortage": "\n".join(shortage_lines(run.shortage)) if run.shortage else "",
        "notes": notes(run),
        "figures": [(name, format_bytes(size)) for name, size in figures.items() if size >= MIB],
        "kinds": [(kind, format_bytes(size)) for kind, size in by_size if size >= MIB],
        "at": PHASES.get(run.phase, run.phase) + (f" of step {run.step}" if run.step else ""),
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
        "steps": [(f"step {number}" if number else "set-up", at * step) for number, at in _steps(curves)],
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
