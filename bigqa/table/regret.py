"""What the planner's choice costs within a memory. In: rows, a memory cap. Out: `Choice`s, one for each workload.

The planner's own rule, the fastest of the lowest tier that fits, is applied to the predictions of what was measured.
Regret is the share of speed that a planner with the measurements in hand would have gained within the same tier.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from bigqa.bench.report import Case
from bigqa.table.rows import Row

Kind = Literal["plan", "false fit", "false no", "nothing fits"]
"""A plan that ran; one that did not; none, though something ran; none, and nothing ran."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What was asked of one device: whatever trains it is a candidate."""

    model: str
    seq_len: int
    global_batch: int
    processor: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the planner takes of a workload's rows at a cap, and what would have been best."""

    workload: Workload
    cap_bytes: int
    kind: Kind
    chosen: Row | None
    best: Row | None
    """The fastest measured of the chosen tier or a lower one that ran within the cap; without a choice, of any."""

    @property
    def regret(self) -> float | None:
        """Share of the best speed that was lost. A plan that does not run loses all; without a plan there is none."""
        if self.chosen is None:
            return None
        if self.kind == "false fit" or self.best is None:
            return 1.0
        return 1 - speed_of(self.chosen) / speed_of(self.best)


def workloads(rows: Iterable[Row]) -> dict[Workload, list[Row]]:
    """Group the rows by what was asked.

    A strategy that shortens windows belongs to every workload of longer ones: it answers them in its own way.
    """
    groups: dict[Workload, list[Row]] = defaultdict(list)
    shortened = []
    for row in rows:
        if row.report.case.axes.seq_len is None:
            groups[_workload(row)].append(row)
        else:
            shortened.append(row)
    for workload, members in groups.items():
        members += [row for row in shortened if _shortens(row, workload)]
    return dict(groups)


def choice_at(workload: Workload, rows: list[Row], cap_bytes: int) -> Choice | None:
    """Return what the planner does with a workload at a cap; none where no run tells anything about it."""
    known = [row for row in _at_cap(rows, cap_bytes) if _is_known(row, cap_bytes)]
    if not known:
        return None
    fitting = [row for row in known if row.predicted_to_fit(cap_bytes)]
    chosen = min(fitting, key=lambda row: (row.tier, -row.predicted.samples_per_s), default=None)
    ran = [row for row in known if row.fitted(cap_bytes)]
    best = max((row for row in ran if chosen is None or row.tier <= chosen.tier), key=speed_of, default=None)
    kind: Kind = "plan"
    if chosen is None:
        kind = "false no" if ran else "nothing fits"
    elif chosen.fitted(cap_bytes) is False:
        kind = "false fit"
    return Choice(workload=workload, cap_bytes=cap_bytes, kind=kind, chosen=chosen, best=best)


def choices_at(rows: Iterable[Row], cap_bytes: int) -> list[Choice]:
    """Return the choice of every workload that a cap says something about."""
    found = (choice_at(workload, members, cap_bytes) for workload, members in workloads(rows).items())
    return [choice for choice in found if choice is not None]


def speed_of(row: Row) -> float:
    """Return the samples per second that were measured; zero for a run that did not reach its end."""
    return row.measured.samples_per_s if row.measured.ok else 0.0


def _workload(row: Row) -> Workload:
    case = row.report.case
    return Workload(model=row.model, seq_len=case.seq_len, global_batch=case.global_batch, processor=row.processor)


def _shortens(row: Row, workload: Workload) -> bool:
    case = row.report.case
    same = _workload(row) == replace(workload, seq_len=case.seq_len)
    # A length asked for that is shorter than the strategy's own was not shortened by it.
    return same and case.axes.seq_len == case.seq_len < workload.seq_len


def _at_cap(rows: list[Row], cap_bytes: int) -> list[Row]:
    """Return each case once: as it ran under this cap, or else under none."""
    found: dict[Case, Row] = {}
    for row in sorted(rows, key=lambda row: row.report.case.cap_bytes or 0):
        if row.report.case.cap_bytes in (None, cap_bytes):
            found[row.report.case.model_copy(update={"cap_bytes": None})] = row
    return list(found.values())


def _is_known(row: Row, cap_bytes: int) -> bool:
    # A crash or a hang is known: a planner that chooses it trains nothing. Where memory ran out below the cap, no one
    # knows what the cap would have done; nor how fast a run is whose memory alone was measured.
    if row.measured.ok and not row.is_timed:
        return False
    return row.shows_need and (row.measured.outcome != "out of memory" or row.fitted(cap_bytes) is False)
