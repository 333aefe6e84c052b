"""Tables for people. In: plain records. Out: rich tables; the only place where numbers become text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bigqa.machine.gpus import GPUS
from bigqa.plan.candidates import HEADROOM, HOST_HEADROOM, Candidate
from bigqa.plan.files import launch_words
from bigqa.plan.question import Need, Probe
from bigqa.units import format_bytes, format_seconds

WIDE = 0.2
"""An error of the speed from which on it pays to measure the machine."""
TIERS = {0: "nothing", 1: "rounding only", 2: "what is learned"}
PROBE_COLUMNS = ("strategy", "tier", "batch", "GPU peak / limit", "host peak", "samples/s", "run", "verdict")


def inspection_table(found: Mapping[str, Any]) -> Table:
    """Show what `bigqa data inspect` found, one figure a row; nested figures are indented by their names."""
    table = Table("figure", "value", title="data")
    for name, value in _flat(found):
        table.add_row(name, _text(value))
    return table


def scores_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Show EM, F1 and the number of questions, one row for each score."""
    table = Table("", "EM", "F1", "questions", title=title)
    for name, score in rows.items():
        figures = (f"{score['exact_match']:.2f}", f"{score['f1']:.2f}", str(score["total"]))
        table.add_row(name, *figures)
    return table


def show_probe(found: Probe, out: Path | None, console: Console, *, show_all: bool) -> None:
    """Print the table and the plan; `out`: where the plan is written, if it is."""
    console.print(probe_table(found, show_all=show_all))
    text = plan_text(found, out or Path("plan.json"), is_written=out is not None)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_need(rows: Sequence[Need], console: Console) -> None:
    """Print how much GPU memory is enough."""
    console.print(need_table(rows))
    console.print(need_text(rows), markup=False, highlight=False, soft_wrap=True)


def probe_table(found: Probe, *, show_all: bool) -> Table:
    """Show the strategies, the best first."""
    table = Table(title=title(found), box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in PROBE_COLUMNS:
        table.add_column(name, no_wrap=name != "verdict")
    for candidate in found.candidates:
        if candidate.fits or show_all:
            style = "bold green" if candidate is found.chosen else None if candidate.fits else "dim"
            table.add_row(*cells(found, candidate), style=style)
    return table


def plan_text(found: Probe, plan: Path, *, is_written: bool = False) -> str:
    """Say in words what was chosen, what comes next, and how to run it."""
    lines = []
    if found.chosen is None:
        lines += _nothing_fits(found)
    else:
        chosen = found.chosen
        where = f"in {chosen.strategy.precision}, on the {device(found, chosen)}"
        lines.append(f"Plan: {chosen.name}, {where}. {_gives_up(found, chosen)}")
        lines.append(f"  predicted peak {peak(chosen)}, reached in the {_phase(chosen)}: {_made_of(chosen)}")
        if found.next_best is not None:
            lines.append(f"Next: {found.next_best.name}. {_gives_up(found, found.next_best)}")
        lines.append("Run:" if is_written else f"Run (after --out {plan}):")
        lines.append(f"  {launch_words(found, plan)}")
    lines += _speeds_from(found)
    lines.append("GPU figures are predictions from the step's own trace; none has been measured on a GPU yet.")
    return "\n".join(lines)


def _speeds_from(found: Probe) -> list[str]:
    """Say what the speeds were worked out from, and how far they may be off."""
    known = {c.strategy.device: c for c in found.candidates if c.speed_source}
    lines = []
    for device_type, candidate in known.items():
        measured = candidate.speed_source.startswith("measured")
        source = candidate.speed_source if measured else "worked out from the datasheet"
        advice = (
            "" if measured and candidate.speed_error < WIDE else "; `bigqa probe --calibrate` measures this machine"
        )
        where = "CPU" if device_type == "cpu" else device(found, candidate)
        lines.append(f"Speed on the {where}: {source}, within about {candidate.speed_error:.0%}{advice}.")
    return lines


def _nothing_fits(found: Probe) -> list[str]:
    closest = found.closest
    if closest is None:
        return ["Nothing fits: " + "; ".join(sorted({c.reason for c in found.candidates if c.reason})) + "."]
    memory = closest.memory
    assert memory is not None
    if closest.reason == "disk space":
        short, has = memory.disk_bytes, found.hardware.disk_free_bytes or 0
    elif closest.reason == "host memory":
        together = found.num_gpus if closest.strategy.device == "cuda" else 1
        short, has = memory.host_bytes * together, found.host_bytes
    else:
        short, has = closest.peak_bytes, closest.limit_bytes
    margin = HOST_HEADROOM if closest.reason == "host memory" else HEADROOM
    wanted = short / (1 - margin)
    lines = [
        f"Nothing fits. The closest is {closest.name}: it needs {format_bytes(wanted)} of {closest.reason} with "
        f"{margin:.0%} left free, and {format_bytes(has)} are there: {format_bytes(max(0, wanted - has))} short."
    ]
    if closest.reason == "GPU memory":
        cards = [card.name for card in GPUS if card.memory_bytes * (1 - HEADROOM) >= short]
        remedy = f"one of {', '.join(cards[:6])}; the CPU" if cards else "more GPUs (--gpus), a smaller model"
    else:
        remedy = f"{format_bytes(wanted)} of {closest.reason}"
    return [*lines, f"What would make it fit: {remedy}; shorter windows (--seq-len)."]


def need_table(rows: Sequence[Need]) -> Table:
    """Show how much GPU memory is enough."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("strategy", "changes", "at micro-batch 1", "at the published batch", "enough at micro-batch 1"):
        table.add_column(name, no_wrap=not name.startswith("enough"))
    for row in rows:
        cells = (format_bytes(row.least_bytes), format_bytes(row.published_bytes))
        table.add_row(row.name, TIERS[row.tier], *cells, _cards(row.cards))
    return table


def need_text(rows: Sequence[Need]) -> str:
    """Say in a line for each tier what is enough."""
    lines = []
    for tier, changes in TIERS.items():
        members = [row for row in rows if row.tier == tier]
        if members:
            least = min(members, key=lambda row: row.least_bytes)
            lines.append(f"Changing {changes}: {format_bytes(least.least_bytes)} is enough ({least.name}).")
    whole = [row for row in rows if row.name == "plain"]
    if whole:
        lines.append(f"With nothing saved, at the published batch: {format_bytes(whole[0].published_bytes)} (plain).")
    lines.append("As NVML shows it, on one GPU. These are predictions; none has been measured on a GPU yet.")
    return "\n".join(lines)


def _cards(names: Sequence[str]) -> str:
    """Name cards of the table in as few words as will do."""
    others = [card.name for card in GPUS if card.name not in names]
    if not others:
        return "every card of the table"
    if not names:
        return "no card of the table"
    if others == [card.name for card in GPUS if not card.has_bf16]:
        return "every card with bf16"
    return f"all but {', '.join(others)}" if len(others) < len(names) else ", ".join(names)


def title(found: Probe) -> str:
    """Say in a line what was asked."""
    work = found.workload
    where = f"{found.gpu.name} ({format_bytes(found.gpu.free_bytes)} free)" if found.gpu else found.hardware.cpu.name
    count = f"{found.num_gpus} x " if found.num_gpus > 1 else ""
    return f"{found.question.model} on {count}{where}, windows of {work.seq_len}, {work.global_batch} per step"


def cells(found: Probe, candidate: Candidate) -> tuple[str, ...]:
    """Return a strategy's row of the table."""
    on_gpu = candidate.strategy.device == "cuda"
    memory = candidate.memory
    run = format_seconds(candidate.run_s) if candidate.samples_per_s else "-"
    return (
        candidate.name,
        str(candidate.tier),
        f"{candidate.micro_batch} x {candidate.grad_accum}",
        peak(candidate) if memory and on_gpu else "-",
        format_bytes(memory.host_bytes) if memory else "-",
        f"{candidate.samples_per_s:.2f}" if candidate.samples_per_s else "-",
        run,
        candidate.verdict + (f": {candidate.reason}" if candidate.reason else ""),
    )


def peak(candidate: Candidate) -> str:
    """Return "peak / limit" of what runs short first."""
    return f"{format_bytes(candidate.peak_bytes)} / {format_bytes(candidate.limit_bytes)}"


def device(found: Probe, candidate: Candidate) -> str:
    """Name what a candidate runs on."""
    return "CPU" if candidate.strategy.device == "cpu" or found.gpu is None else found.gpu.name


def _phase(candidate: Candidate) -> str:
    phase = candidate.memory.phase if candidate.memory else ""
    names = {"backward": "backward pass", "forward": "forward pass", "clip": "clipping", "set-up": "set-up"}
    return names.get(phase, f"{phase} step")


def _made_of(candidate: Candidate) -> str:
    assert candidate.memory is not None
    parts = sorted(candidate.memory.by_category.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size >= 2**20)


def _gives_up(found: Probe, candidate: Candidate) -> str:
    lost = found.workload.out_of_reach.get(candidate.seq_len)
    if candidate.strategy.seq_len is not None:
        share = (
            f", {lost:.1%} of the answers out of reach" if lost is not None else " (--train-file counts lost answers)"
        )
        return f"It changes what is learned: windows of {candidate.seq_len}{share}."
    clipping = ", and clips by the gradient norm of the step before" if candidate.strategy.release else ""
    return f"It changes {TIERS[candidate.tier]}{clipping}."


def _flat(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in found.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{label} ")
        else:
            rows.append((label, value))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
