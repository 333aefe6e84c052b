"""One case: a run is begun, broken, gone on with under the pair's other setup, and judged. In: a case. Out: a record.

What it should have come to is known from runs that nobody breaks: one of each setup, which keeps a checkpoint of every
step, and one of each setup gone on with from there under another. They are made when they are first asked for.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.torture import judge
from benchmarks.torture.cases import KINDS, Case
from benchmarks.torture.damage import damage
from benchmarks.torture.deeds import deed_of
from benchmarks.torture.downloads import broken_download
from benchmarks.torture.forks import ENVIRONMENT, Said, ended, kill, launched
from benchmarks.torture.inside import Inside, Moment
from benchmarks.torture.log import Log
from benchmarks.torture.places import Place
from benchmarks.torture.setups import Setup
from bigqa.run.workers import KILLED_S

LIMIT_S = 240.0
"""Of one start, by the clock, on a machine that is busy with other things."""
WAITS_FOR_ROOM = b"min for room"
"""What a run says whose last step finds a full disk, for minutes beyond the limit: it is given some."""
SAVE_EVERY = 3
STARTS = 5
"""Without a fault, until a run must be over."""
WORDS = {
    "global-batch": 4, "epochs": 2, "seq-len": 64, "doc-stride": 16, "max-query-length": 24, "lr": 1e-3, "dropout": 0.0,
}  # fmt: skip
COLD = ("start", "features")
"""Phases of a fault for which nothing lies in the cache."""
SWITCHING = 16
"""Things that are done to switch to the next rung, about."""
Fault = tuple[Moment, Callable[[Log], Callable[[], None]]]


class Rig:
    """What the cases of one process share."""

    def __init__(self, folder: Path, *, mounts: bool, groups: bool, lane: int = 0) -> None:
        self.folder, self.mounts, self.groups, self.lane = folder, mounts, groups, lane
        self.model, self.train, self.dev = (folder / name for name in ("model.json", "train.json", "dev.json"))
        self.tokenizer, self.traces = folder / "tokenizer", folder / "traces"

    def place(self, name: str) -> Place:
        """Return the folders of a run that is to be broken."""
        return Place(self.folder / name, mounts=self.mounts, groups=self.groups)

    def words(self, place: Place, setup: Setup, *, evaluates: bool, until_s: int | None = None) -> list[str]:
        """Return what `bigqa train` is told, each time."""
        plan = place.folder / f"{setup.key}.json"
        plan.write_text(json.dumps(setup.plan), encoding="utf-8")
        given: dict[str, Any] = {name: str(value) for name, value in WORDS.items()}
        given |= {"model": self.model, "tokenizer": self.tokenizer, "train-file": place.data, "out": place.run}
        given |= {"plan": plan, "num-processes": setup.processes, "save-every": SAVE_EVERY, "resume": "auto"}
        given |= {"dev-file": self.dev, "eval-every": 2} if evaluates else {}
        given |= {"nvme": place.folder / "nvme"} if setup.axes.needs_disk else {}
        given |= {"until": f"{until_s}s"} if until_s is not None else {}
        words = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        words += ["--keep-best"] if evaluates else []
        return [*words, "--device", setup.device, "--no-check"]

    def started(self, place: Place, words: list[str], faults: list[Fault], name: str) -> judge.Start:
        """Run to the end of one start, whatever that is."""
        log = Log(place.folder / f"log-{name}")

        def heard(part: bytes) -> None:
            if WAITS_FOR_ROOM in part:
                place.make_room()

        said = Said(heard)
        environment = ENVIRONMENT | {"BIGQA_CACHE": str(place.cache), "TMPDIR": str(place.folder)}
        inside = Inside(log, place.disk, [(moment, deed(log)) for moment, deed in faults])
        began = time.monotonic()
        pid = launched(words, said, environment, inside.begin)

        def pids() -> list[int]:
            return sorted({pid, *(fact["pid"] for fact in log.read("process"))})

        first = ended(lambda: [pid], LIMIT_S, said)
        rest = ended(pids, KILLED_S, said) if first is not None else None
        kill(pids())
        ended(pids, KILLED_S, said)
        facts = log.read()
        log.close()
        code = None if first is None else first[pid]
        return judge.Start(code, said.text(), facts, rest is not None, time.monotonic() - began)

    def reference(self, setup: Setup, *, evaluates: bool) -> judge.Reference:
        """Return the run of a setup that nobody breaks."""
        name = f"{setup.key}{'-scored' if evaluates else ''}"

        def make(place: Place) -> None:
            words = self.words(place, setup, evaluates=evaluates)
            start = self.started(place, [*words, "--save-every", "1", "--keep", "99"], [], "0")
            if start.code != 0:
                raise RuntimeError(f"{name}: {start.code}: {start.said[-3000:]}")

        return self._kept(name, make)

    def handed_over(self, first: Setup, then: Setup, step: int, *, evaluates: bool) -> judge.Reference:
        """Return the run of a setup that is gone on with under another from a step on, and that nobody breaks."""
        if first == then or step == 0 or then.device == "cuda":  # where weights mean nothing
            return self.reference(then, evaluates=evaluates)
        name = f"{first.key}-{step}-{then.key}{'-scored' if evaluates else ''}"

        def make(place: Place) -> None:
            source = self.reference(first, evaluates=evaluates)
            shutil.copytree(source.place.run, place.run, ignore=shutil.ignore_patterns("checkpoints", "model"))
            shutil.copytree(source.checkpoint(step), place.run / "checkpoints" / source.checkpoint(step).name)
            shutil.copyfile(source.place.data, place.data)
            if evaluates:
                source.keep_best(step, self.dev, place.run)
            start = self.started(place, self.words(place, then, evaluates=evaluates), [], "0")
            if start.code != 0 or start.first_step != step:
                raise RuntimeError(f"{name}: {start.code}: {start.said[-3000:]}")
            shutil.rmtree(place.run / "checkpoints")

        return self._kept(name, make)

    def _kept(self, name: str, make: Callable[[Place], None]) -> judge.Reference:
        """Make a run that is compared with, unless it is there."""
        place = Place(self.folder / "whole" / name, mounts=False, groups=False)
        with self._alone(name):
            if not (place.folder / "made").is_file():
                place.make(self.train)
                make(place)
                self._keep_traces(place)
                shutil.rmtree(place.cache)
                (place.folder / "made").touch()
        return judge.Reference(place)

    def _keep_traces(self, place: Place) -> None:
        """Keep what a plan is made of: it is most of a start's time, and the same for each start of a setup."""
        for file in (place.cache / "traces").rglob("*.z"):
            kept = self.traces / file.relative_to(place.cache / "traces")
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, kept.with_suffix(f".{os.getpid()}"))
            kept.with_suffix(f".{os.getpid()}").replace(kept)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        (self.folder / "whole").mkdir(exist_ok=True)
        with (self.folder / "whole" / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def run(self, case: Case) -> dict[str, Any]:
        """Break a run as a case has it; return what it came to."""
        place = self.place(f"lane-{self.lane}")
        began, used = time.monotonic(), os.times()
        try:
            place.make(self.train)
            found = (broken_download if KINDS[case.kind].own else self._broken)(case, place)
            if found["outcome"] == "wrong":
                shutil.copytree(
                    place.folder, self.folder / "wrong" / str(case.number), dirs_exist_ok=True, symlinks=True
                )
        finally:
            place.remove()
        now = os.times()
        spent = sum(now[:4]) - sum(used[:4])
        return case.told | found | {"took_s": round(time.monotonic() - began, 1), "spent_s": round(spent, 1)}

    def _broken(self, case: Case, place: Place) -> dict[str, Any]:
        kind, whole = KINDS[case.kind], self.reference(case.first, evaluates=case.evaluates)
        words = self.words(place, case.first, evaluates=case.evaluates, until_s=case.until_s)
        if case.phase not in COLD and self.traces.is_dir():
            shutil.copytree(self.traces, place.cache / "traces")
        starts = [self.started(place, words, self._faults(case, whole, place), "0")]
        trial = judge.Trial(case, place, starts, kept=judge.whole_checkpoints(place.run))
        trial.look_at_end()
        place.mend(self.train)
        if kind.damages:
            trial.damaged = self._damaged(kind.damages, case, place)
        words = self.words(place, case.then, evaluates=case.evaluates)
        for number in range(1, STARTS):
            starts.append(self.started(place, words, [], str(number)))
            trial.look_at_start()
            if starts[-1].code == 0:
                break
        step = trial.first_step_of_then()
        expected = self.handed_over(case.first, case.then, step, evaluates=case.evaluates) if step >= 0 else whole
        trial.look_at_result(whole, expected)
        return trial.record()

    def _faults(self, case: Case, whole: judge.Reference, place: Place) -> list[Fault]:
        """Return what happens to the first start, and when."""

        def at(phase: str, kind: str, *, rank: int = 0, number: int | None = None) -> Fault:
            found = whole.number_at(phase, case.share, SAVE_EVERY, rank) if number is None else number
            return Moment(phase, found, rank, case.delay_ms), lambda log: deed_of(kind, case.figures, place, log)

        if case.kind == "kill-in-switch":
            return [at("step", "kill-worker"), at("switch", "kill-all", number=int(case.share * SWITCHING))]
        return [at(case.phase, "kill-all" if KINDS[case.kind].damages else case.kind, rank=case.rank)]

    def _damaged(self, what: str, case: Case, place: Place) -> judge.Damage | None:
        """Damage what a run has left."""
        return judge.damaged(what, place, case.draw, damage)
