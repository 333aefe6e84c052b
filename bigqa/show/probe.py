"""What `bigqa probe` shows. In: a `Probe`. Out: a table, and the plan in words."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bigqa.console import note, show
from bigqa.language import joined, put, shown, tr
from bigqa.machine.gpus import GPUS
from bigqa.plan.candidates import Candidate
from bigqa.plan.files import launch_words
from bigqa.plan.machine import HEADROOM
from bigqa.plan.probe import Probe
from bigqa.units import format_bytes, format_seconds

WIDE = 0.2
"""An error of the speed from which on it pays to measure the machine."""
TIERS = {0: tr("nothing"), 1: tr("rounding only"), 2: tr("what is learned")}
PROBE_COLUMNS = (
    tr("strategy"), tr("tier"), tr("batch"), tr("GPU peak / limit"), tr("host peak"), tr("samples/s"), tr("run"),
    tr("verdict"),
)  # fmt: skip
SPARE_COLUMNS = (tr("run"), tr("host peak"), tr("tier"))


def show_probe(found: Probe, out: Path | None, console: Console, *, show_all: bool) -> None:
    """Print the table and the plan; `out`: where the plan is written, if it is."""
    rows = found.candidates if show_all else [candidate for candidate in found.candidates if candidate.fits]
    show(probe_table(found, rows), console, SPARE_COLUMNS)
    for line in reasons(rows):
        note(line, console)
    text = plan_text(found, out or Path("plan.json"), is_written=out is not None)
    console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def probe_table(found: Probe, shown: Sequence[Candidate]) -> Table:
    """Show strategies, the best first, each with its verdict; why it is so stands below, where a sentence has room."""
    table = Table(title=title(found), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in PROBE_COLUMNS:
        table.add_column(name, no_wrap=True)
    for candidate in shown:
        style = "bold green" if candidate is found.chosen else None if candidate.fits else "dim"
        table.add_row(*cells(found, candidate)[:-1], put(candidate.verdict), style=style)
    return table


def reasons(shown: Sequence[Candidate]) -> list[str]:
    """Say why verdicts are what they are: a line for each reason, with the strategies that share it."""
    sharing: dict[str, list[str]] = {}
    for candidate in shown:
        if candidate.reason:
            why = put("{verdict}: {reason}", verdict=put(candidate.verdict), reason=candidate.reason)
            sharing.setdefault(why, []).append(candidate.name)
    return [put("{names}: {why}", names=", ".join(names), why=why) for why, names in sharing.items()]


def plan_text(found: Probe, plan: Path, *, is_written: bool = False) -> str:
    """Say in words what was chosen, what comes next, and how to run it."""
    lines: list[str] = []
    if found.chosen is None:
        lines += _nothing_fits(found)
    else:
        chosen = found.chosen
        lines.append(
            tr(
                "Plan: {name}, in {precision}, on the {device}. {gives_up}",
                name=chosen.name,
                precision=chosen.strategy.precision,
                device=device(found, chosen),
                gives_up=_gives_up(found, chosen),
            )
        )
        lines.append(
            tr(
                "  predicted peak {peak}, reached in the {phase}: {made_of}",
                peak=peak(chosen),
                phase=_phase(chosen),
                made_of=_made_of(chosen),
            )
        )
        if (following := found.next_best) is not None:
            lines.append(tr("Next: {name}. {gives_up}", name=following.name, gives_up=_gives_up(found, following)))
        lines += _cut(found)
        lines.append(tr("Run:") if is_written else tr("Run (after --out {plan}):", plan=plan))
        lines.append(f"  {launch_words(found, plan)}")
    if found.without_kernels is not None:
        lines.append(tr("First: {remedy}", remedy=found.without_kernels))
    lines += _speeds_from(found)
    lines.append(tr("GPU figures are predictions from the step's own trace; none has been measured on a GPU yet."))
    return joined("\n", lines)


def _cut(found: Probe) -> list[str]:
    """Say what windows of each length lose of the data."""
    lost = found.workload.out_of_reach
    if not any(lost.values()):
        return []
    (shortest, most), *rest = lost.items()
    of, how = found.workload.lost_words
    first = tr("Of the {of} {most:.1%} are {how} at {shortest} tokens", of=of, most=most, how=how, shortest=shortest)
    told = joined(", ", [first, *(tr("{share:.1%} at {at}", share=share, at=at) for at, share in rest)])
    return [put("{told}.", told=told)]


def _speeds_from(found: Probe) -> list[str]:
    """Say what the speeds were worked out from, and how far they may be off."""
    known = {c.strategy.device: c for c in found.candidates if c.speed_source}
    lines: list[str] = []
    for device_type, candidate in known.items():
        measured = candidate.speed_source.startswith("measured")
        source = candidate.speed_source if measured else tr("worked out from the datasheet")
        advice = (
            "" if measured and candidate.speed_error < WIDE else tr("; `bigqa probe --calibrate` measures this machine")
        )
        where = "CPU" if device_type == "cpu" else device(found, candidate)
        lines.append(
            tr(
                "Speed on the {where}: {source}, within about {error:.0%}{advice}.",
                where=where,
                source=source,
                error=candidate.speed_error,
                advice=advice,
            )
        )
    return lines


def _nothing_fits(found: Probe) -> list[str]:
    closest = found.closest
    if closest is None:
        why = joined("; ", sorted({c.reason for c in found.candidates if c.reason}))
        return [tr("Nothing fits: {why}.", why=why)]
    assert closest.memory is not None
    short = found.machine.short_of(closest.strategy, closest.memory)
    assert short is not None
    wanted = short.needs / (1 - short.left_free)
    margin = tr(" with {share:.0%} left free", share=short.left_free) if short.left_free else ""
    lines: list[str] = [
        tr(
            "Nothing fits. The closest is {closest}: it needs {wanted} of {kind}{margin}, and {has} are there: "
            "{missing} short.",
            closest=closest.name,
            wanted=format_bytes(wanted),
            kind=short.kind,
            margin=margin,
            has=format_bytes(short.has),
            missing=format_bytes(max(0, wanted - short.has)),
        )
    ]
    if short.kind == "GPU memory":
        cards = [card.name for card in GPUS if card.memory_bytes * (1 - HEADROOM) >= short.needs]
        some = tr("one of {cards}; the CPU", cards=", ".join(cards[:6]))
        remedy = some if cards else tr("more GPUs (--gpus), a smaller model")
    else:
        remedy = tr("{size} of {kind}", size=format_bytes(wanted), kind=short.kind)
    return [*lines, tr("What would make it fit: {remedy}; shorter windows (--seq-len).", remedy=remedy)]


def title(found: Probe) -> str:
    """Say in a line what was asked."""
    work = found.workload
    where: str = found.hardware.cpu.name
    if found.gpu:
        where = tr("{gpu} ({size} free)", gpu=found.gpu.name, size=format_bytes(found.gpu.free_bytes))
    return tr(
        "{model} on {count}{where}, windows of {seq_len}, {global_batch} per step",
        model=found.question.model,
        count=f"{found.num_gpus} x " if found.num_gpus > 1 else "",
        where=where,
        seq_len=work.seq_len,
        global_batch=work.global_batch,
    )


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
        joined(": ", (put(candidate.verdict), *([candidate.reason] if candidate.reason else []))),
    )


def peak(candidate: Candidate) -> str:
    """Return "peak / limit" of what runs short first."""
    return f"{format_bytes(candidate.peak_bytes)} / {format_bytes(candidate.limit_bytes)}"


def device(found: Probe, candidate: Candidate) -> str:
    """Name what a candidate runs on."""
    return "CPU" if candidate.strategy.device == "cpu" or found.gpu is None else found.gpu.name


def _phase(candidate: Candidate) -> str:
    phase = candidate.memory.phase if candidate.memory else ""
    names = {
        "backward": tr("backward pass"),
        "forward": tr("forward pass"),
        "clip": tr("clipping"),
        "set-up": tr("set-up"),
        "optimizer": tr("optimizer step"),
    }
    return names.get(phase, f"{phase} step")


CATEGORIES = {"context": tr("CUDA context")}
"""What a part of memory is called where its own name says something else in other places."""


def _made_of(candidate: Candidate) -> str:
    assert candidate.memory is not None
    parts = sorted(candidate.memory.by_category.items(), key=lambda item: -item[1])
    large = ((name, size) for name, size in parts if size >= 2**20)
    named = ((CATEGORIES.get(name, put(name)), format_bytes(size)) for name, size in large)
    return joined(", ", [put("{name} {size}", name=name, size=size) for name, size in named])


def _gives_up(found: Probe, candidate: Candidate) -> str:
    lost, (of, how) = found.workload.out_of_reach.get(candidate.seq_len), found.workload.lost_words
    if candidate.strategy.seq_len is not None:
        share = tr(" (--train-file counts what is lost)")
        if lost is not None:
            share = tr(", {lost:.1%} of the {of} {how}", lost=lost, of=of, how=how)
        length = candidate.seq_len
        return tr("It changes what is learned: windows of {length}{share}.", length=length, share=share)
    clipping = tr(", and clips by the gradient norm of the step before") if candidate.strategy.release else ""
    return tr("It changes {what}{clipping}.", what=TIERS[candidate.tier], clipping=clipping)
