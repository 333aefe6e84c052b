"""`bigqa seeds`: equal runs with other seeds. In: options, a count. Out: mean, spread, the best model, an ensemble.

In the folder: seeds.json (what was asked for), plan.json (for all runs), a run folder for each seed, summary.json and
page.html (from the first that is over), and at the end ensemble/. Of runs that are over checkpoints go, and models but
the best one.
"""

import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigqa.console import say
from bigqa.errors import BigqaError
from bigqa.files import atomic_path, read_json, write_json
from bigqa.language import tr
from bigqa.run.job import job_of
from bigqa.runs.live import Live
from bigqa.runs.member import Member, whole_report
from bigqa.runs.page import SUMMARY, rewritten
from bigqa.runs.pool import carry_out
from bigqa.runs.statistics import Summary, summary
from bigqa.runs.together import (
    PLAN,
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
from bigqa.runs.words import as_plain, words_of
from bigqa.settings import Settings

ASKED, ENSEMBLE = "seeds.json", "ensemble"
FREE = ("num_processes", "device", "check")
"""Options that may be others when the same command goes on."""


class Seeds:
    """Runs of some seeds, one after the other; a `pool.Source`."""

    def __init__(self, count: int, options: Mapping[str, Any], out: Path, asked_at_once: int | None = None) -> None:
        self.out, self.live = out, Live(count)
        self.options = {name: value for name, value in options.items() if name != "seed"}
        self.first = options.get("seed")
        settings = checked({**self.options, "seed": self.first}, out / "none")
        self.first = settings.seed
        self.numbers = [self.first + index for index in range(count)]
        self.metric, self.least = metric_of(settings)
        self.settings = settings
        kept = {name: value for name, value in as_plain(self.options).items() if name not in FREE}
        asked = {"schema": 1, "options": kept, "seed": self.first, "count": count, "metric": self.metric}
        check_same(out, ASKED, asked, "seeds", free=("count",))
        self.at_once = self._planned(asked_at_once)
        self.left = [number for number in self.numbers if whole_report(self.folder(number)) is None]
        self.failed: dict[int, str] = {}

    def folder(self, number: int) -> Path:
        """Return the folder of a seed's run."""
        return self.out / f"seed-{number}"

    def run(self) -> None:
        """Carry out what is left."""
        if len(self.left) < len(self.numbers):
            say(
                tr(
                    "{done} of {all} runs are there already",
                    done=len(self.numbers) - len(self.left),
                    all=len(self.numbers),
                )
            )
        with self.live:
            carry_out(self, self.at_once)
        self._keep_the_best()

    def _planned(self, asked: int | None) -> int:
        plan = made_plan(self.settings, self.options, self.out)
        found = None
        if plan is not None:
            found = at_once(plan)
            self.options |= {"plan": self.out / PLAN}
            say(
                tr(
                    "plan for all runs: {plan} in {precision}, micro-batches of {micro_batch}",
                    plan=plan.name,
                    precision=plan.strategy.precision,
                    micro_batch=plan.micro_batch,
                )
            )
            say(tr("at once: {words}", words=found.words))
        count = places(asked, found)
        if count > 1:
            say(tr("{count} runs go on at a time", count=count))
        return count

    def next(self, slot: int) -> Member | None:
        """Return the next seed's run."""
        if not self.left:
            return None
        number = self.left.pop(0)
        options = {name: value for name, value in self.options.items() if name != "num_processes"}
        member = Member(
            tr("seed {number}", number=number),
            self.folder(number),
            words_of(options | {"seed": number}),
            num_processes=self.options.get("num_processes") or 1,
            environment=environment_of(slot, self.at_once),
        )
        self.live.begun(member)
        return member

    def look(self, member: Member) -> None:
        """Show how far a run is."""
        self.live.look(member)

    def ended(self, member: Member) -> None:
        """Drop what is no longer needed of a run. Raises: BigqaError where the first fails: so would the others."""
        self.live.ended(member, self._figure(member.report))
        if member.is_stopped:
            return
        if member.report is None:
            if not self.done():
                raise BigqaError(
                    tr(
                        "{member}: {problem} (what it printed is in {output})",
                        member=member.name,
                        problem=member.problem,
                        output=member.output,
                    )
                )
            self.failed[int(member.folder.name.removeprefix("seed-"))] = member.problem
            return
        drop_checkpoints(member.folder)
        self._keep_the_best()
        if len(self.done()) < len(self.numbers):  # at the end comes the ensemble too
            write_json(self.out / SUMMARY, so_far(self))
            with contextlib.suppress(BigqaError):  # what is spoiled in a run's folder is told when all are over
                rewritten(self.out)

    def waits(self) -> bool:
        """Nothing comes later: all seeds are known."""
        return False

    def done(self) -> dict[int, dict[str, Any]]:
        """Return the reports of the runs that are over, by seed."""
        found = {number: whole_report(self.folder(number)) for number in self.numbers}
        return {number: report for number, report in found.items() if report is not None}

    def values(self) -> dict[str, float]:
        """Return the score that tells the best, by the name of a run's folder."""
        found = {self.folder(number).name: value_of(report, self.metric) for number, report in self.done().items()}
        return {name: value for name, value in found.items() if value is not None}

    def _figure(self, report: Mapping[str, Any] | None) -> str:
        value = value_of(report, self.metric) if report is not None else None
        return "" if value is None else f"{self.metric} {value:.4g}"

    def _keep_the_best(self) -> None:
        """Remove models that are beaten. With a killed process between two of them, the next start does it."""
        values = self.values()
        if not values:
            return
        best = best_of(values, least=self.least)
        for name in values:
            drop_checkpoints(self.out / name)
            if name != best:
                drop_model(self.out / name)

    def command(self) -> str:
        """Return the command that goes on, as it was typed."""
        options = {name: value for name, value in self.options.items() if value != self.out / PLAN}
        words = words_of(options | {"seed": self.first})
        return shlex.join(["bigqa", "seeds", str(len(self.numbers)), *words, "--out", str(self.out)])


def result(seeds: Seeds) -> dict[str, Any]:
    """Return what all runs came to, and write it: figures over seeds, the best, the ensemble's scores."""
    values, found = seeds.values(), so_far(seeds)
    found["ensemble"] = _ensemble(seeds, list(values), found["best"]) if len(values) > 1 else None
    write_json(seeds.out / SUMMARY, found)
    return found


def so_far(seeds: Seeds) -> dict[str, Any]:
    """Return what the runs that are over came to: figures over seeds, and the best."""
    done, values = seeds.done(), seeds.values()
    scored = [report["scores"] for report in done.values() if "scores" in report]
    names = [
        name
        for name, value in (scored[0].items() if scored else ())
        if isinstance(value, int | float) and all(isinstance(one.get(name), int | float) for one in scored)
    ]
    return {
        "schema": 1,
        "metric": seeds.metric,
        "least_is_best": seeds.least,
        "runs": {str(number): _row(report) for number, report in done.items()},
        "failed": {str(number): problem for number, problem in seeds.failed.items()},
        "scores": {name: vars(_over(scored, name)) for name in names if name not in COUNTS},
        "best": best_of(values, least=seeds.least) if values else None,
        "ensemble": None,
        "left": len(seeds.numbers) - len(done) - len(seeds.failed),
    }


COUNTS = ("total", "tokens", "missing")
"""Figures among scores that count what was scored."""


def _over(scored: list[dict[str, Any]], name: str) -> Summary:
    return summary([float(one[name]) for one in scored])


def _row(report: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in report.get("scores", {}).items() if isinstance(value, int | float)}
    names = ("steps", "seconds", "last_loss", "peak_memory_bytes", "samples_per_s")
    return {name: report[name] for name in names} | {"scores": plain, "switches": len(report.get("switches", ()))}


def _ensemble(seeds: Seeds, names: list[str], best: str) -> dict[str, Any] | None:
    """Score what the runs say together, and write their common answers; none where a task cannot."""
    settings: Settings = seeds.settings
    job = job_of(settings)
    assert settings.dev_file is not None
    options = job.kind.settled(job.options, [settings.train_file, settings.dev_file])
    config = read_json(seeds.out / best / "model" / "config.json", tr("the best model's configuration"))
    scored = job.kind.together([seeds.out / name for name in names], settings.dev_file, options, config)
    if scored is None:
        return None
    (seeds.out / ENSEMBLE).mkdir(exist_ok=True)
    for name, write in scored.files.items():
        with atomic_path(seeds.out / ENSEMBLE / name) as temporary:
            write(temporary)
    return {name: value for name, value in scored.scores.items() if isinstance(value, int | float)}
