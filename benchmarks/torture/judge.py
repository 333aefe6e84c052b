"""What a broken run came to. In: its starts, its folder, the run that nobody broke. Out: an outcome, and why.

survived: the same model, and nobody had to do more than start the run again. said: a start ended with a line that says
what was wrong, and when that was put right the run came to the same model. wrong: anything else.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.torture.cases import KINDS, Case
from benchmarks.torture.log import Fact
from benchmarks.torture.places import Place
from benchmarks.torture.setups import band_of
from bigqa.engine.loop.checkpoint import load_newest
from bigqa.lock import check_free
from bigqa.tasks.registry import DEFAULT, kind_of

UNFORESEEN = ("Traceback", "unforeseen", "Exception ignored", "dumped core")
DOUBTS = re.compile(r"^bigqa: .*|.*(is damaged|cannot be read|trying the checkpoint before it|out of memory).*", re.M)
STOPPED = ("interrupted", "stopped", "there is nothing to save", "Stopping;", "the run was over before")
KEEP = 2


@dataclass(frozen=True)
class Start:
    """One start of a run, with what its processes told."""

    code: int | None
    """None: it did not end by itself."""
    said: str
    facts: list[Fact]
    ended: bool
    """Whether no process of it was left running."""
    took_s: float

    def of(self, what: str) -> list[Fact]:
        """Return the facts of a kind, of the first process."""
        return [fact for fact in self.facts if fact["what"] == what and fact["rank"] == 0]

    @property
    def first_step(self) -> int | None:
        """Where its last process went on from; none: it did not come to it."""
        found = self.of("first")
        return found[-1]["step"] if found else None

    @property
    def problem(self) -> str | None:
        """What it said that is more than a stop that was asked for."""
        lines = [found.group(0).strip() for found in DOUBTS.finditer(self.said)]
        return next((line[:200] for line in lines if not any(word in line for word in STOPPED)), None)

    @property
    def last_line(self) -> str:
        """Its last word."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


@dataclass(frozen=True)
class Reference:
    """A run that nobody broke."""

    place: Place

    @property
    def facts(self) -> list[Fact]:
        """What its processes told."""
        lines = (self.place.folder / "log-0").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint of a step."""
        return next(path for path in (self.place.run / "checkpoints").glob("step-*") if int(path.name[5:]) == step)

    def keep_best(self, step: int, dev: Path, run: Path) -> None:
        """Give another run the best model up to a step, as this one had it then."""
        metric = kind_of(DEFAULT).watched_on(dev)
        scores = [one for one in _lines(self.place.run / "evaluations.jsonl") if one["step"] <= step]
        if scores:
            best = self.checkpoint(max(scores, key=lambda one: one[metric])["step"])
            shutil.copytree(best, run / "best" / best.name)

    def number_at(self, phase: str, share: float, save_every: int, rank: int = 0) -> int:
        """Return which thing of a phase a share of them comes to; it saved after every step."""
        counts = [fact for fact in self.facts if fact["what"] == "counts" and fact["rank"] == rank]
        count = counts[-1].get(phase, 0) if counts else 0
        return int(share * (count / save_every if phase == "save" else count))


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return what a run recorded of its steps."""
    return _lines(run / "metrics.jsonl")


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def whole_checkpoints(run: Path) -> list[int]:
    """Return the steps of the checkpoints that are whole, in whatever form they are kept; the newest first."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for number, path in enumerate(sorted((run / "checkpoints").glob("step-*"), reverse=True)):
            alone = Path(name) / str(number)
            alone.mkdir()
            (alone / path.name).symlink_to(path)
            checkpoint = load_newest(alone, lambda text: None)
            found += [checkpoint.step] if checkpoint is not None else []
    return found


def windows_of(facts: list[Fact]) -> dict[int, list[int]]:
    """Return step -> the windows that its processes trained on, of the steps that the result comes from.

    What a later start did anew takes the place of what an earlier one did.
    """
    steps: dict[int, dict[int, list[int]]] = {}
    for fact in facts:
        if fact["what"] == "first" and fact["rank"] == 0:
            steps = {step: done for step, done in steps.items() if step < fact["step"]}
        elif fact["what"] == "step":
            steps.setdefault(fact["step"], {})[fact["rank"]] = fact["windows"]
    return {step: sorted(chain.from_iterable(of_rank.values())) for step, of_rank in sorted(steps.items())}


@dataclass
class Damage:
    """What was damaged, and how to undo it."""

    words: str
    undo: Callable[[], None]
    step: int | None = None
    """Of the checkpoint."""


def damaged(what: str, place: Place, draw: Any, damage: Callable[..., str]) -> Damage | None:
    """Damage a checkpoint, the features or another file of a run; none: there is nothing to damage."""
    folder, other, step = place.cache, None, None
    if what == "checkpoint":
        there = sorted((place.run / "checkpoints").glob("step-*"), reverse=True)
        if not there:
            return None
        folder = draw.choice([there[0], *there])  # the newest most of all
        other = next((path for path in there if path != folder), None)
        step = int(folder.name[5:])
    elif what == "run":
        files = [path for path in place.run.iterdir() if path.is_file()] if place.run.is_dir() else []
        if not files:
            return None
        folder = place.run / "files"
        folder.mkdir()
        for file in files:
            file.rename(folder / file.name)
    if not any(path.is_file() for path in folder.rglob("*")):
        return None
    kept = place.folder / "undamaged"
    shutil.copytree(folder, kept)
    words = damage(folder, draw, other)

    def undo() -> None:
        if what == "run":
            for file in kept.iterdir():
                shutil.copyfile(file, place.run / file.name)
        else:
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)

    if what == "run":
        for file in folder.iterdir():
            file.rename(place.run / file.name)
        folder.rmdir()
    return Damage(words, undo, step)


@dataclass
class Trial:
    """A case as far as it has come."""

    case: Case
    place: Place
    starts: list[Start]
    kept: list[int]
    """The whole checkpoints that the fault has left."""
    damaged: Damage | None = None
    wrong: list[str] = field(default_factory=list)
    undone: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the run came to the moment of its fault."""
        is_damaged = self.damaged is not None or not KINDS[self.case.kind].damages
        return is_damaged and any(fact["what"] == "fault" for start in self.starts for fact in start.facts)

    def look_at_end(self) -> None:
        """Judge the start that was broken."""
        start = self.starts[0]
        self._look_at(start)
        if (start.code or 0) > 0 and start.problem is None and not any(word in start.said for word in STOPPED):
            self.wrong.append(f"ended with {start.code} and without a line that says why: {start.said[-500:]}")
        saved = sorted({fact["step"] for fact in start.of("saved")})
        newest = self.kept[0] if self.kept else 0
        if saved and newest < saved[-1]:
            self.wrong.append(f"saved step {saved[-1]}, and the newest whole checkpoint is {self.kept[:1]}")
        if len(self.kept) < min(KEEP, len(saved)):
            self.wrong.append(f"saved {saved}, and whole are {self.kept}")

    def look_at_start(self) -> None:
        """Judge a start that goes on."""
        start, is_first = self.starts[-1], len(self.starts) == 2
        self._look_at(start)
        restored = [fact["step"] for fact in start.of("restored")]
        if is_first and restored:
            self._look_at_restored(start, restored[0])
        if start.code == 0:
            return
        if self.damaged is not None and not self.undone and start.problem is not None:
            self.damaged.undo()  # it was refused, in a line
            self.undone = True
        else:
            self.wrong.append(f"does not go on: {start.code}: {start.last_line}")

    def _look_at_restored(self, start: Start, step: int) -> None:
        newest, of = (self.kept[0] if self.kept else 0), self.damaged.step if self.damaged else None
        if of is None or of != newest:
            if step != newest:
                self.wrong.append(f"goes on from step {step}, and the newest whole checkpoint is {newest}")
            return
        before = self.kept[1] if len(self.kept) > 1 else 0
        if step not in (newest, before):
            self.wrong.append(f"goes on from step {step}, and there were {self.kept}")
        elif step == before and start.problem is None:
            self.wrong.append("a damaged checkpoint is passed over without a word")

    def _look_at(self, start: Start) -> None:
        if start.code is None:
            self.wrong.append(f"did not end in {start.took_s:.0f} s: {start.last_line}")
        elif not start.ended:
            self.wrong.append("left processes running")
        for mark in UNFORESEEN:
            if mark in start.said:
                at = start.said.index(mark)
                self.wrong.append(f"{mark}: {start.said[at : at + 1500]}{_traceback_in(self.place.folder)}")

    def first_step_of_then(self) -> int:
        """Return the step that the run was gone on from under the pair's other setup."""
        if self.starts[0].code == 0 or len(self.starts) == 1:
            return -1
        found = [fact["step"] for start in self.starts[1:] for fact in start.of("first")]
        return found[0] if found else -1

    def look_at_result(self, whole: Reference, expected: Reference) -> None:
        """Judge what the run came to."""
        if not self.starts or self.starts[-1].code != 0:
            return
        run, there = self.place.run, metrics(whole.place.run)
        found = metrics(run)
        if not (self.damaged and "metrics.jsonl" in self.damaged.words):
            if [one["step"] for one in found] != [one["step"] for one in there]:
                self.wrong.append(f"recorded steps {[one['step'] for one in found]}")
            if not self.case.on_gpu:
                self._compare_losses(found, there)
        self._compare_windows(whole)
        if not self.case.on_gpu and not _lines(run / "switches.jsonl"):
            self._compare_weights(run, expected.place.run)
        left = [str(path.relative_to(run)) for path in run.rglob("*.tmp")]
        left += [name for name in (".ended", ".stop-requested") if (run / name).exists()]
        if left:
            self.wrong.append(f"left behind: {left}")
        check_free(run)
        for name in ("report.json", "plan.json", "versions.json", "config.json"):
            try:
                json.loads((run / name).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                self.wrong.append(f"{name}: {error}")

    def _compare_losses(self, found: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
        band = band_of(self.case.first, self.case.then)
        pairs = zip(found, there, strict=False)
        most = max((abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in pairs), default=0.0)
        if band is not None and most > band:
            self.wrong.append(f"losses differ by {most:.2g}, more than {band:.2g}")

    def _compare_windows(self, whole: Reference) -> None:
        mine = windows_of([fact for start in self.starts for fact in start.facts])
        theirs = windows_of(whole.facts)
        if mine != theirs:
            other = [step for step in sorted(mine.keys() | theirs.keys()) if mine.get(step) != theirs.get(step)]
            self.wrong.append(f"other windows in steps {other}")
        self.wrong += [f"the unbroken run: {problem}" for problem in not_once(theirs, metrics(whole.place.run))]

    def _compare_weights(self, run: Path, other: Path) -> None:
        mine, theirs = (load_file(one / "model" / "model.safetensors") for one in (run, other))
        unlike = [name for name, value in theirs.items() if name not in mine or not torch.equal(mine[name], value)]
        if unlike or mine.keys() != theirs.keys():
            most = max((float((mine[name] - theirs[name]).abs().max()) for name in unlike if name in mine), default=0.0)
            pairs = zip(metrics(run), metrics(other), strict=False)
            since = next((a["step"] for a, b in pairs if a["loss"] != b["loss"]), None)
            self.wrong.append(
                f"{len(unlike)} of {len(theirs)} weights differ, by up to {most:.2g}; losses since step {since}"
            )

    def record(self) -> dict[str, Any]:
        """Return what a report says of it."""
        problem = next((start.problem for start in self.starts if start.problem), None)
        outcome = "wrong" if self.wrong else "said" if problem else "survived"
        words = self.damaged.words if self.damaged else ""
        found = {"met": self.is_met, "codes": [start.code for start in self.starts], "outcome": outcome}
        return found | {"said": problem or "", "damage": words, "wrong": self.wrong}


def _traceback_in(folder: Path) -> str:
    """Return the end of what a run has written down of an error that nobody foresaw."""
    return "".join(file.read_text(encoding="utf-8")[-1000:] for file in folder.glob("bigqa-*.txt"))


def not_once(windows: dict[int, list[int]], records: list[dict[str, Any]]) -> list[str]:
    """Say where an epoch does not see every window once."""
    epochs: dict[int, list[int]] = {}
    for record in records:
        epochs.setdefault(-int(-record["epoch"] // 1), []).extend(windows.get(record["step"] - 1, []))
    every = set(chain.from_iterable(epochs.values()))
    return [f"epoch {epoch}" for epoch, seen in epochs.items() if sorted(seen) != sorted(every)]
