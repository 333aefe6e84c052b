"""What `bigqa probe` shows. In: a `Probe`. Out: a table, and the plan in words."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bigqa.console import note, show
from bigqa.machine.gpus import GPUS
from bigqa.plan.candidates import Candidate
from bigqa.plan.files import launch_words
from bigqa.plan.machine import HEADROOM
from bigqa.plan.probe import Probe
from bigqa.units import format_bytes, format_seconds

WIDE = 0.2
"""An error of the speed from which on it pays to measure the machine."""
TIERS = {0: "nothing", 1: "rounding only", 2: "what is learned"}
PROBE_COLUMNS = ("strategy", "tier", "batch", "GPU peak / limit", "host peak", "samples/s", "run", "verdict")
SPARE_COLUMNS = ("run", "host peak", "tier")


def show_probe(found: Probe, out: Path | None, console: Console, *, show_all: bool) -> None:
    """Print the table and the plan; `out`: where the plan is written, if it is."""
    shown = found.candidates if show_all else [candidate for candidate in found.candidates if candidate.fits]
    show(probe_table(found, shown), console, SPARE_COLUMNS)
    for line in reasons(shown):
        note(line, console)
    text = plan_text(found, out or Path("plan.json"), is_written=out is not None)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def probe_table(found: Probe, shown: Sequence[Candidate]) -> Table:
    """Show strategies, the best first, each with its verdict; why it is so stands below, where a sentence has room."""
    table = Table(title=title(found), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in PROBE_COLUMNS:
        table.add_column(name, no_wrap=True)
    for candidate in shown:
        style = "bold green" if candidate is found.chosen else None if candidate.fits else "dim"
        table.add_row(*cells(found, candidate)[:-1], candidate.verdict, style=style)
    return table


def reasons(shown: Sequence[Candidate]) -> list[str]:
    """Say why verdicts are what they are: a line for each reason, with the strategies that share it."""
    sharing: dict[str, list[str]] = {}
    for candidate in shown:
        if candidate.reason:
            sharing.setdefault(f"{candidate.verdict}: {candidate.reason}", []).append(candidate.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in sharing.items()]


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
        lines += _cut(found)
        lines.append("Run:" if is_written else f"Run (after --out {plan}):")
        lines.append(f"  {launch_words(found, plan)}")
    if found.without_kernels is not None:
        lines.append(f"First: {found.without_kernels}")
    lines += _speeds_from(found)
    lines.append("GPU figures are predictions from the step's own trace; none has been measured on a GPU yet.")
    return "\n".join(lines)


def _cut(found: Probe) -> list[str]:
    """Say what windows of each length lose of the data."""
    lost = found.workload.out_of_reach
    if not any(lost.values()):
        return []
    (shortest, most), *rest = lost.items()
    of, how = found.workload.lost_words
    told = [f"Of the {of} {most:.1%} are {how} at {shortest} tokens", *(f"{share:.1%} at {at}" for at, share in rest)]
    return [", ".join(told) + "."]


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
    assert closest.memory is not None
    short = found.machine.short_of(closest.strategy, closest.memory)
    assert short is not None
    wanted = short.needs / (1 - short.left_free)
    margin = f" with {short.left_free:.0%} left free" if short.left_free else ""
    lines = [
        f"Nothing fits. The closest is {closest.name}: it needs {format_bytes(wanted)} of {short.kind}{margin}, "
        f"and {format_bytes(short.has)} are there: {format_bytes(max(0, wanted - short.has))} short."
    ]
    if short.kind == "GPU memory":
        cards = [card.name for card in GPUS if card.memory_bytes * (1 - HEADROOM) >= short.needs]
        remedy = f"one of {', '.join(cards[:6])}; the CPU" if cards else "more GPUs (--gpus), a smaller model"
    else:
        remedy = f"{format_bytes(wanted)} of {short.kind}"
    return [*lines, f"What would make it fit: {remedy}; shorter windows (--seq-len)."]


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
    lost, (of, how) = found.workload.out_of_reach.get(candidate.seq_len), found.workload.lost_words
    if candidate.strategy.seq_len is not None:
        share = f", {lost:.1%} of the {of} {how}" if lost is not None else " (--train-file counts what is lost)"
        return f"It changes what is learned: windows of {candidate.seq_len}{share}."
    clipping = ", and clips by the gradient norm of the step before" if candidate.strategy.release else ""
    return f"It changes {TIERS[candidate.tier]}{clipping}."
