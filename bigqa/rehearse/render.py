"""What a rehearsal found, for a person. In: its record. Out: lines and tables of a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bigqa.console import show
from bigqa.nullgpu.cards import NullGpu
from bigqa.rehearse.report import Group, Read, Rehearsal, Shortage
from bigqa.units import MIB, format_bytes

PHASES = {
    "set-up": "while the program sets up",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "before the step": "between the backward pass and the optimizer's step",
    "between": "between two passes",
    "optimizer": "in the optimizer's step",
}
MOST_READS = 5


def show_rehearsals(found: Sequence[Rehearsal], gpu: NullGpu, console: Console) -> None:
    """Print what was found; of two bounds the worse in full."""
    worst = max(found, key=lambda run: (not run.fits, run.nvml_bytes))
    _say(console, headline(worst, gpu))
    show(figures_table(found, gpu), console)
    if worst.shortage is not None:
        for line in shortage_lines(worst.shortage):
            _say(console, line)
    at = PHASES.get(worst.phase, worst.phase) + (f" of step {worst.step}" if worst.step else "")
    _say(console, f"Allocated at the peak, {at}:")
    show(kinds_table(worst), console)
    show(largest_table(worst.largest, console.width), console)
    for line in notes(worst):
        _say(console, line)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def headline(found: Rehearsal, gpu: NullGpu) -> str:
    """Say in a line whether it fits, and where."""
    count = f"{gpu.count} x " if gpu.count > 1 else ""
    card = f"{count}{gpu.card.name} ({format_bytes(gpu.total_bytes)})"
    if not found.fits:
        return f"Does not fit: {card} runs out of memory {where(found.shortage)}."
    share = found.nvml_bytes / found.total_bytes
    return f"Fits: {card}, {format_bytes(found.nvml_bytes)} at most as NVML shows it ({share:.0%})."


def where(shortage: Shortage | None) -> str:
    """Return "in the forward pass of step 1"."""
    if shortage is None:
        return ""
    of_step = "" if shortage.phase == "set-up" else f" of step {shortage.step}"
    return f"{PHASES.get(shortage.phase, shortage.phase)}{of_step}"


def figures_table(found: Sequence[Rehearsal], gpu: NullGpu) -> Table:
    """Show the peaks, a column for each bound."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("peak")
    for run in found:
        table.add_column({"least": "at least", "most": "at most"}[run.bound] if len(found) > 1 else "", justify="right")
    rows = (
        ("allocated by tensors", "allocated_bytes"),
        ("reserved by torch", "reserved_bytes"),
        (f"as NVML shows it (with {format_bytes(gpu.context_bytes)} of context)", "nvml_bytes"),
        ("pinned host memory", "pinned_bytes"),
        ("managed memory, which may lie on the card", "managed_bytes"),
        ("host memory of the process", "host_bytes"),
    )
    for label, name in rows:
        sizes = [getattr(run, name) for run in found]
        if max(sizes) >= MIB:
            table.add_row(label, *map(format_bytes, sizes))
    return table


def shortage_lines(found: Shortage) -> list[str]:
    """Say where memory ran out, and what torch says."""
    lines = [] if found.is_end else [f"Memory ran out {where(found)}, and the command went on."]
    lines.append(f"  {found.message.partition(' If reserved but')[0]}")
    at = [f"  at {found.where}: {found.text}" if found.where else ""]
    at.append(f"  from {found.own}" if found.own and found.own != found.where else "")
    return [*lines, *filter(None, at)]


def kinds_table(found: Rehearsal) -> Table:
    """Show what was allocated at the peak, by kind."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("kind")
    table.add_column("allocated", justify="right")
    total = sum(found.by_kind.values())
    table.add_column("share", justify="right")
    for kind, size in sorted(found.by_kind.items(), key=lambda item: -item[1]):
        if size < MIB:
            break
        table.add_row(kind, format_bytes(size), f"{size / total:.0%}")
    return table


def largest_table(groups: Sequence[Group], width: int) -> Table:
    """Show the largest of it, with the lines that made it: the person's own, and the innermost outside of torch."""
    title = "The largest of it"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, width=width)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("tensors", justify="right", no_wrap=True)
    table.add_column("your line", no_wrap=True)
    table.add_column("made by", no_wrap=True, overflow="ellipsis", ratio=1)  # cut where a terminal ends
    for group in groups:
        line = _short(group.own)
        unknown = "" if group.where else "autograd's own thread"
        made_by = f"{_short(group.where)} {group.text}" if group.where != group.own else group.text
        table.add_row(format_bytes(group.size_bytes), group.kind, str(group.count), line, Text(made_by or unknown))
    return table


def _short(place: str) -> str:
    """Return "file.py:12" of "folder/file.py:12 function"."""
    return place.partition(" ")[0].rpartition("/")[2]


def notes(found: Rehearsal) -> list[str]:
    """Say what the figures rest on."""
    lines = [f"{found.steps} optimizer steps in {found.seconds:.0f} s with torch {found.torch}; kernels were not run."]
    if not found.steps and found.fits:
        lines.append("No optimizer step was seen: these are the peaks of the whole command.")
    if found.is_cut:
        lines.append("There were more allocations than torch remembers: kinds and lines are of the last ones.")
    for other in found.other_processes:
        nvml = format_bytes(other["nvml_bytes"])
        lines.append(
            f"rank {other['rank']}: {nvml} as NVML shows it, {format_bytes(other['allocated_bytes'])} allocated"
        )
    return lines + read_lines(found.reads)


def read_lines(reads: Sequence[Read]) -> list[str]:
    """Tell of values that the command read back from the GPU: no kernel has computed them."""
    questions = [read for read in reads if read.is_question]
    numbers = len(reads) - len(questions)
    lines = []
    if questions:
        lines.append("The command asked the GPU, which has computed nothing; a real one may answer otherwise:")
    for read in questions[:MOST_READS]:
        answer = "yes" if read.answer else "no"
        lines.append(f"  {read.where}: {read.text} (heard {answer}, {read.times} times; {switch(read)})")
    if len(questions) > MOST_READS:
        lines.append(f"  and {len(questions) - MOST_READS} more places: --json lists them")
    if numbers:
        lines.append(f"Numbers were read back as 0 in {numbers} place{'s' if numbers > 1 else ''} (--json lists them).")
    return lines


def switch(read: Read) -> str:
    """Return the switch that changes an answer."""
    place = read.where.split(" ")[0]
    return f"--true {place} answers yes" if not read.answer else f"without --true {place}: no"
