"""`bigqa sweep`: a search for better settings. In: a search, a folder. Out: trials carried out, the best model kept.

In the folder: sweep.json (what is searched), study.db (unless --storage names another place), a run folder for each
trial, trials.json, which follows what the trials come to, and at the end page.html. Of trials that are over checkpoints
go, and models but the best one.
"""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigqa.console import say
from bigqa.engine.loop.evaluation import FILE as EVALUATIONS
from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json, read_records, write_json
from bigqa.language import put, tr
from bigqa.runs.live import Live
from bigqa.runs.member import Member, whole_report
from bigqa.runs.page import TRIALS
from bigqa.runs.pool import carry_out
from bigqa.runs.search import EVAL_TIMES, Search
from bigqa.runs.storage import storage_of
from bigqa.runs.study import Asked, Study
from bigqa.runs.together import (
    AtOnce,
    at_once,
    best_of,
    check_same,
    checked,
    drop_checkpoints,
    drop_model,
    environment_of,
    made_plan,
    metric_of,
    places,
    value_of,
)
from bigqa.runs.words import words_of

ASKED = "sweep.json"
OTHERS_S = 5.0
"""Between two looks at what other processes do."""
FAILED_FIRST = 3
"""Trials that fail before any has a result: so would the others."""


class Sweep:
    """The trials of one search that this process carries out; a `pool.Source`."""

    def __init__(self, search: Search, out: Path, storage: str | None = None, asked_at_once: int | None = None) -> None:
        self.search, self.out, self.live = search, out, Live(search.trials)
        self.settings = [checked(options, out / "none") for options in search.corners()]
        self.metric, self.least = metric_of(self.settings[0])
        check_same(out, ASKED, {"schema": 1, "name": search.name} | search.asked, "sweep")
        self.study = Study(search, storage_of(storage, out), least=self.least)
        self.asked: dict[str, Asked] = {}
        self.pruned: set[str] = set()
        self.at_once = self._planned(asked_at_once)
        self._looked, self._told = -OTHERS_S, False

    def run(self) -> None:
        """Carry out what is left."""
        if over := self.study.over():
            say(tr("{over} of {trials} trials are over already", over=over, trials=self.search.trials))
        result(self)
        with self.live:
            carry_out(self, self.at_once)

    def _planned(self, asked: int | None) -> int:
        found: AtOnce | None = None
        for index, options in enumerate(self.search.largest()):
            plan = made_plan(checked(options, self.out / "none"), options, self.out, f"largest-{index + 1}.json")
            if plan is not None:
                one = at_once(plan)
                found = one if found is None or one.by_memory < found.by_memory else found
        if found is not None:
            say(tr("at once: {words} (the largest that may be tried)", words=found.words))
        return places(asked, found)

    def next(self, slot: int) -> Member | None:
        """Return the next trial's run."""
        if time.monotonic() - self._looked < OTHERS_S:
            return None
        asked = self.study.ask()
        if asked is None:
            self._looked = time.monotonic()
            return None
        options = self.search.options | asked.params
        processes = options.pop("num_processes", None) or 1
        again = tr("trial {number} (again {root})", number=asked.number, root=asked.root)
        name = again if asked.root != asked.number else tr("trial {number}", number=asked.number)
        member = Member(
            name,
            self.folder(asked.root),
            words_of(options),
            num_processes=processes,
            environment=environment_of(slot, self.at_once),
        )
        self.asked[name] = asked
        self.study.note(asked, folder=member.folder.name)
        say(put("{name}: {params}", name=name, params=said(asked.params)))
        self.live.begun(member)
        result(self)
        return member

    def folder(self, root: int) -> Path:
        """Return the folder of a trial's run: that of its first start."""
        return self.out / f"trial-{root:04d}"

    def look(self, member: Member) -> None:
        """Take a trial's scores as it trains; end it where it is worse than the median of the others."""
        self.live.look(member)
        asked = self.asked[member.name]
        self.study.beat(asked)
        if member.name in self.pruned or not self.search.stops_early:
            return
        known = len(asked.reported)
        for part, value in self._scores(member.folder):
            if self.study.report(asked, part, value):
                self.pruned.add(member.name)
                at = tr("after {part} of {parts} parts", part=part, parts=self._parts)
                say(
                    tr(
                        "{member}: {metric} {value:.4g} {at}: worse than the median, ended",
                        member=member.name,
                        metric=self.metric,
                        value=value,
                        at=at,
                    )
                )
                member.stop()
                break
        if len(asked.reported) > known:
            result(self)

    @property
    def _parts(self) -> int:
        return int(self.search.options.get("eval_times") or EVAL_TIMES)

    def _scores(self, folder: Path) -> Iterator[tuple[int, float]]:
        """Yield the scores so far, by how many parts of the trial were done."""
        found = read_records(folder / EVALUATIONS)
        steps = read_json(folder / "plan.json", tr("a run's plan")).get("steps") if found else None
        for one in found:
            if steps and one["step"] < steps and self.metric in one:
                yield round(self._parts * one["step"] / steps), float(one[self.metric])

    def ended(self, member: Member) -> None:
        """Tell the study what a trial came to. Raises: BigqaError where the others would fail as well."""
        try:
            self._ended(member)
        finally:
            result(self)

    def _ended(self, member: Member) -> None:
        asked = self.asked.pop(member.name)
        report = member.report
        value = value_of(report, self.metric) if report is not None else None
        if value is not None and math.isfinite(value):
            self.live.ended(member, f"{self.metric} {value:.4g}")
            self.study.note(asked, **_facts(report))
            self.study.tell(asked, value)
            self._keep_the_best()
            return
        if member.name in self.pruned:
            self.live.ended(member, tr("ended early"))
            self.study.tell(asked, pruned=True)
        elif value is not None:
            self.live.ended(member, f"{self.metric} {value}")
            self.study.tell(asked, problem=tr("its {metric} is {value}", metric=self.metric, value=value))
        elif member.is_stopped:
            self.live.ended(member, "")
            self.study.tell(asked)
            return
        else:
            self.live.ended(member, "")
            self.study.tell(asked, problem=member.problem or tr("it left no report"))
            self._give_up(member)
        drop_checkpoints(member.folder)
        drop_model(member.folder)

    def _give_up(self, member: Member) -> None:
        """End the search where all that was tried so far failed. Raises: BigqaError."""
        states, failed = self.study.states, [one for one in self.study.trials() if "problem" in one.user_attrs]
        worked = any(one.state in (states.COMPLETE, states.PRUNED) for one in self.study.trials())
        if not worked and (member.code == UsageError.exit_code or len(failed) >= FAILED_FIRST):
            raise BigqaError(
                tr(
                    "{member}: {problem} (what it printed is in {output})",
                    member=member.name,
                    problem=member.problem,
                    output=member.output,
                )
            )

    def waits(self) -> bool:
        """Whether others carry out trials that may be lost, and come here then."""
        if (others := self.study.running_elsewhere()) and not self._told:
            say(tr("waiting for {others} trials of other processes; Ctrl-C leaves them to those", others=others))
            self._told = True
        return bool(others)

    def _keep_the_best(self) -> None:
        """Remove models of this folder that are beaten."""
        states = self.study.states
        done = {
            one.user_attrs["folder"]: one.value
            for one in self.study.trials()
            if one.state == states.COMPLETE and whole_report(self.out / one.user_attrs.get("folder", "")) is not None
        }
        if not done:
            return
        best = best_of(done, least=self.least)
        for name in done:
            drop_checkpoints(self.out / name)
            if name != best:
                drop_model(self.out / name)


def _facts(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what of a report the table of all trials shows, wherever its folder is."""
    assert report is not None
    names = ("steps", "seconds", "samples_per_s", "peak_memory_bytes")
    scores = {name: value for name, value in report["scores"].items() if isinstance(value, int | float)}
    return {name: report[name] for name in names} | {"scores": scores}


def said(params: Mapping[str, Any]) -> str:
    """Say parameters in a line."""
    shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in params.values())
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in zip(params, shown, strict=True))


def result(sweep: Sweep) -> dict[str, Any]:
    """Return what all trials came to, the best first, and write it."""
    states, rows = sweep.study.states, []
    for one in sweep.study.trials():
        if sweep.study.is_lost(one):
            continue
        attrs, curve = one.user_attrs, one.intermediate_values
        if one.state == states.RUNNING and not curve:  # nobody asks for the scores of a search that ends none early
            curve = dict(sweep._scores(sweep.folder(attrs.get("root", one.number))))
        rows.append(
            {
                "trial": one.number,
                "state": "failed" if one.state == states.FAIL else one.state.name.lower(),
                "value": one.value if one.state == states.COMPLETE else None,
                "params": dict(one.params),
                "curve": {str(part): value for part, value in curve.items()},
                "folder": attrs.get("folder"),
                "host": attrs.get("who", {}).get("host"),
                "problem": attrs.get("problem"),
                "again": one.number != attrs.get("root", one.number),
                **{name: attrs.get(name) for name in ("seconds", "steps", "peak_memory_bytes", "scores")},
            }
        )
    sign = 1 if sweep.least else -1
    order = {"complete": 0, "running": 1, "waiting": 1, "pruned": 2, "failed": 3}
    rows.sort(key=lambda row: (order[row["state"]], sign * (row["value"] or 0.0), row["trial"]))
    best = next((row for row in rows if row["value"] is not None), None)
    options = sweep.search.options | (best["params"] if best else {})
    found = {
        "schema": 1,
        "name": sweep.search.name,
        "metric": sweep.metric,
        "least_is_best": sweep.least,
        "asked": sweep.search.asked,
        "parts": sweep._parts,
        "trials": rows,
        "best": best["trial"] if best else None,
        "options": words_of({name: value for name, value in options.items() if name != "eval_times"}),
    }
    write_json(sweep.out / TRIALS, found)
    return found
