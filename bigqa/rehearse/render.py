"""What a rehearsal found, for a person. In: its record. Out: lines and tables of a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bigqa.console import show
from bigqa.language import put, shown, tr
from bigqa.nullgpu.cards import NullGpu
from bigqa.rehearse.report import Group, Read, Rehearsal, Shortage
from bigqa.units import MIB, format_bytes

PHASES = {
    "set-up": tr("while the program sets up"),
    "forward": tr("in the forward pass"),
    "backward": tr("in the backward pass"),
    "before the step": tr("between the backward pass and the optimizer's step"),
    "between": tr("between two passes"),
    "optimizer": tr("in the optimizer's step"),
}
AUTOGRAD = tr("autograd's own thread")
MOST_READS = 5


def show_rehearsals(found: Sequence[Rehearsal], gpu: NullGpu, console: Console) -> None:
    """Print what was found; of two bounds the worse in full."""
    worst = max(found, key=lambda run: (not run.fits, run.nvml_bytes))
    _say(console, headline(worst, gpu))
    show(figures_table(found, gpu), console)
    if worst.shortage is not None:
        for line in shortage_lines(worst.shortage):
            _say(console, line)
    _say(console, tr("Allocated at the peak, {at}:", at=phase_of(worst.phase, worst.step or None)))
    show(kinds_table(worst), console)
    show(largest_table(worst.largest, console.width), console)
    for line in notes(worst):
        _say(console, line)


def _say(console: Console, text: str) -> None:
    console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def headline(found: Rehearsal, gpu: NullGpu) -> str:
    """Say in a line whether it fits, and where."""
    count = f"{gpu.count} x " if gpu.count > 1 else ""
    card = f"{count}{gpu.card.name} ({format_bytes(gpu.total_bytes)})"
    if not found.fits:
        return tr("Does not fit: {card} runs out of memory {where}.", card=card, where=where(found.shortage))
    share, most = found.nvml_bytes / found.total_bytes, format_bytes(found.nvml_bytes)
    return tr("Fits: {card}, {most} at most as NVML shows it ({share:.0%}).", card=card, most=most, share=share)


def where(shortage: Shortage | None) -> str:
    """Return "in the forward pass of step 1"."""
    if shortage is None:
        return ""
    return phase_of(shortage.phase, None if shortage.phase == "set-up" else shortage.step)


def phase_of(phase: str, step: int | None) -> str:
    """Return the same of a phase and its step, where it has one."""
    name = PHASES.get(phase, phase)
    return name if step is None else tr("{phase} of step {step}", phase=name, step=step)


def figures_table(found: Sequence[Rehearsal], gpu: NullGpu) -> Table:
    """Show the peaks, a column for each bound."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column(tr("peak"))
    for run in found:
        table.add_column(
            {"least": tr("at least"), "most": tr("at most")}[run.bound] if len(found) > 1 else "", justify="right"
        )
    rows = (
        (tr("allocated by tensors"), "allocated_bytes"),
        (tr("reserved by torch"), "reserved_bytes"),
        (tr("as NVML shows it (with {context} of context)", context=format_bytes(gpu.context_bytes)), "nvml_bytes"),
        (tr("pinned host memory"), "pinned_bytes"),
        (tr("managed memory, which may lie on the card"), "managed_bytes"),
        (tr("host memory of the process"), "host_bytes"),
    )
    for label, name in rows:
        sizes = [getattr(run, name) for run in found]
        if max(sizes) >= MIB:
            table.add_row(label, *map(format_bytes, sizes))
    return table


def shortage_lines(found: Shortage) -> list[str]:
    """Say where memory ran out, and what torch says."""
    went_on = tr("Memory ran out {where}, and the command went on.", where=where(found))
    lines: list[str] = [] if found.is_end else [went_on]
    lines.append(f"  {found.message.partition(' If reserved but')[0]}")
    at = [tr("  at {where}: {line}", where=found.where, line=found.text) if found.where else ""]
    at.append(tr("  from {own}", own=found.own) if found.own and found.own != found.where else "")
    return [*lines, *filter(None, at)]


def kinds_table(found: Rehearsal) -> Table:
    """Show what was allocated at the peak, by kind."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column(tr("kind"))
    table.add_column(tr("allocated"), justify="right")
    total = sum(found.by_kind.values())
    table.add_column(tr("share"), justify="right")
    for kind, size in sorted(found.by_kind.items(), key=lambda item: -item[1]):
        if size < MIB:
            break
        table.add_row(put(kind), format_bytes(size), f"{size / total:.0%}")
    return table


def largest_table(groups: Sequence[Group], width: int) -> Table:
    """Show the largest of it, with the lines that made it: the person's own, and the innermost outside of torch."""
    title = tr("The largest of it")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, width=width)
    table.add_column(tr("size"), justify="right", no_wrap=True)
    table.add_column(tr("kind"), no_wrap=True)
    table.add_column(tr("tensors"), justify="right", no_wrap=True)
    table.add_column(tr("your line"), no_wrap=True)
    table.add_column(tr("made by"), no_wrap=True, overflow="ellipsis", ratio=1)  # cut where a terminal ends
    for group in groups:
        line = _short(group.own)
        unknown = "" if group.where else shown(AUTOGRAD)
        made_by = f"{_short(group.where)} {group.text}" if group.where != group.own else group.text
        table.add_row(format_bytes(group.size_bytes), put(group.kind), str(group.count), line, Text(made_by or unknown))
    return table


def _short(place: str) -> str:
    """Return "file.py:12" of "folder/file.py:12 function"."""
    return place.partition(" ")[0].rpartition("/")[2]


def notes(found: Rehearsal) -> list[str]:
    """Say what the figures rest on."""
    ran = tr(
        "{steps} optimizer steps in {seconds:.0f} s with torch {torch}; kernels were not run.",
        steps=found.steps,
        seconds=found.seconds,
        torch=found.torch,
    )
    lines: list[str] = [ran]
    if not found.steps and found.fits:
        lines.append(tr("No optimizer step was seen: these are the peaks of the whole command."))
    if found.is_cut:
        lines.append(tr("There were more allocations than torch remembers: kinds and lines are of the last ones."))
    for other in found.other_processes:
        nvml, allocated = format_bytes(other["nvml_bytes"]), format_bytes(other["allocated_bytes"])
        lines.append(
            tr(
                "rank {rank}: {nvml} as NVML shows it, {allocated} allocated",
                rank=other["rank"],
                nvml=nvml,
                allocated=allocated,
            )
        )
    return lines + read_lines(found.reads)


def read_lines(reads: Sequence[Read]) -> list[str]:
    """Tell of values that the command read back from the GPU: no kernel has computed them."""
    questions = [read for read in reads if read.is_question]
    numbers = len(reads) - len(questions)
    lines: list[str] = []
    if questions:
        lines.append(tr("The command asked the GPU, which has computed nothing; a real one may answer otherwise:"))
    for read in questions[:MOST_READS]:
        lines.append(
            tr(
                "  {where}: {line} (heard {answer}, {times} times; {switch})",
                where=read.where,
                line=read.text,
                answer=tr("yes") if read.answer else tr("no"),
                times=read.times,
                switch=switch(read),
            )
        )
    if len(questions) > MOST_READS:
        lines.append(tr("  and {count} more places: --json lists them", count=len(questions) - MOST_READS))
    if numbers:
        places = tr("{count} places", count=numbers) if numbers > 1 else tr("1 place")
        lines.append(tr("Numbers were read back as 0 in {places} (--json lists them).", places=places))
    return lines


def switch(read: Read) -> str:
    """Return the switch that changes an answer."""
    place = read.where.split(" ")[0]
    if read.answer:
        return tr("without --true {place}: no", place=place)
    return tr("--true {place} answers yes", place=place)
