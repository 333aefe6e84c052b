"""What `bigqa probe --need` shows. In: the least that each strategy needs. Out: a table, and the answer in words."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bigqa.console import show
from bigqa.language import Text, joined, put, shown, tr
from bigqa.machine.gpus import GPUS
from bigqa.plan.need import Need
from bigqa.show.probe import TIERS
from bigqa.units import format_bytes

CARDS = tr("enough at micro-batch 1")
"""A column of lists: it alone may be folded."""


def show_need(rows: Sequence[Need], console: Console) -> None:
    """Print how much GPU memory is enough, in words and in a table, and what cannot be had."""
    possible = [row for row in rows if not row.reason]
    console.print(shown(need_text(possible)), markup=False, highlight=False, soft_wrap=True)
    show(need_table(possible), console, ("changes", CARDS))
    for row in rows:
        if row.reason:
            text = tr("{name}: not possible: {reason}", name=row.name, reason=row.reason)
            console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def need_table(rows: Sequence[Need]) -> Table:
    """Show how much GPU memory is enough."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in (tr("strategy"), tr("changes"), tr("at micro-batch 1"), tr("at the published batch"), CARDS):
        table.add_column(name, no_wrap=name != CARDS, ratio=1 if name == CARDS else None)
    for row in rows:
        cells = (format_bytes(row.least_bytes), format_bytes(row.published_bytes))
        table.add_row(row.name, TIERS[row.tier], *cells, _cards(row.cards))
    return table


def need_text(rows: Sequence[Need]) -> Text:
    """Say in a line for each tier what is enough."""
    lines: list[Text] = []
    named: list[Need] = []
    for tier, changes in TIERS.items():
        members = [row for row in rows if row.tier == tier]
        if members:
            least = min(members, key=lambda row: row.least_bytes)
            size = format_bytes(least.least_bytes)
            lines.append(
                tr("Changing {changes}: {size} is enough ({name}).", changes=changes, size=size, name=least.name)
            )
            named += [least, *_on_a_disk(least, members)]
    whole = [row for row in rows if row.name == "plain"]
    if whole:
        size = format_bytes(whole[0].published_bytes)
        lines.append(tr("With nothing saved, at the published batch: {size} (plain).", size=size))
    if named:
        lines.append(tr("Of the host besides: {sizes}.", sizes=joined(", ", map(_of_host, named))))
    lines.append(tr("As NVML shows it, on one GPU. These are predictions; none has been measured on a GPU yet."))
    return joined("\n", lines)


def _on_a_disk(least: Need, members: Sequence[Need]) -> list[Need]:
    """Return what needs no more of a GPU than the least, and less of the host, since it has a disk."""
    alike = [row for row in members if row.disk_bytes and row.least_bytes == least.least_bytes]
    return [row for row in alike if row.host_bytes < least.host_bytes]


def _of_host(row: Need) -> Text:
    size, disk = format_bytes(row.host_bytes), format_bytes(row.disk_bytes)
    if not row.disk_bytes:
        return put("{size} ({name})", size=size, name=row.name)
    return tr("{size} and {disk} of a disk ({name})", size=size, disk=disk, name=row.name)


def _cards(names: Sequence[str]) -> str:
    """Name cards of the table in as few words as will do."""
    others = [card.name for card in GPUS if card.name not in names]
    if not others:
        return tr("every card of the table")
    if not names:
        return tr("no card of the table")
    if others == [card.name for card in GPUS if not card.has_bf16]:
        return tr("every card with bf16")
    return tr("all but {cards}", cards=", ".join(others)) if len(others) < len(names) else ", ".join(names)
