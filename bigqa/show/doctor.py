"""What `bigqa doctor` shows. In: findings. Out: a page for people, or JSON for a report."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bigqa import __version__
from bigqa.doctor.finding import Finding
from bigqa.language import joined, shown, tr

WORDS = {"ok": tr("OK"), "costs": tr("COSTS"), "broken": tr("BROKEN")}
STYLES = {"ok": "green", "costs": "yellow", "broken": "bold red"}


def show_doctor(findings: Sequence[Finding], console: Console) -> None:
    """Print a line for each finding; below it, what it costs and how to mend it."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        lines = [one.found]
        if one.state != "ok":
            lines += [tr("Costs: {cost}.", cost=one.cost), tr("Mend: {mend}.", mend=one.mend)]
        word = Text(shown(WORDS[one.state]), style=STYLES[one.state])
        table.add_row(word, shown(one.name), Text("\n".join(map(shown, lines))))
    console.print(table)
    console.print(shown(summary(findings)), markup=False, highlight=False, soft_wrap=True)


def summary(findings: Sequence[Finding]) -> str:
    """Say in a line how it stands."""
    broken = [one.name for one in findings if one.state == "broken"]
    costs = [one.name for one in findings if one.state == "costs"]
    if broken:
        return tr("Nothing trains before this is mended: {names}.", names=joined(", ", broken))
    if costs:
        return tr("All that must be there is there. What costs something: {names}.", names=joined(", ", costs))
    return tr("All is well.")


def doctor_json(findings: Sequence[Finding]) -> str:
    """Return the findings for a report: no folder, no user and no host is named in them."""
    rows = [
        {"name": one.name, "state": one.state, "found": one.found, "cost": one.cost, "mend": one.mend}
        for one in findings
    ]
    return json.dumps({"schema": 1, "bigqa": __version__, "findings": rows}, ensure_ascii=False, indent=2)
