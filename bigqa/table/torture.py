"""What came of runs that were broken at random moments. In: the report of `benchmarks.torture`. Out: a table of it.

survived: the run came to the model that it comes to unbroken, and nobody had to do more than start it again. said: a
line said what was wrong, and when that was put right it came to the same. wrong: anything else.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bigqa.language import tr
from bigqa.table.text import markdown_table

FILE = Path("benchmarks") / "runs" / "torture.jsonl"
OUTCOMES = ("survived", "said", "wrong")
COLUMNS = (tr("fault"), tr("faults"), tr("pairs"), tr("survived"), tr("detected and said"), tr("wrong"))
Fault = dict[str, Any]


def read_faults(file: Path = FILE, *, met: bool = True) -> list[Fault]:
    """Return the faults. `met`: without the runs that were over before their fault came."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [fault for fault in map(json.loads, lines) if not met or fault["met"] or fault["outcome"] == "wrong"]


def torture_markdown(faults: Sequence[Fault]) -> str:
    """Return the table: a row for each kind of fault, and one for all."""
    kinds = sorted({fault["kind"] for fault in faults})
    rows = [_row(kind, [fault for fault in faults if fault["kind"] == kind]) for kind in kinds]
    return markdown_table(COLUMNS, [*rows, _row(tr("{count} kinds", count=len(kinds)), faults)], texts=(COLUMNS[0],))


def _row(name: str, faults: Iterable[Fault]) -> tuple[str, ...]:
    some = list(faults)
    outcomes = Counter(fault["outcome"] for fault in some)
    figures = (len(some), len(pairs_of(some)), *(outcomes[outcome] for outcome in OUTCOMES))
    return (name, *(f"{figure:,}" for figure in figures))


def pairs_of(faults: Iterable[Fault]) -> set[tuple[str, str]]:
    """Return the pairs of setups: what a run began under, and what it went on under."""
    return {(fault["first"], fault["then"]) for fault in faults}
