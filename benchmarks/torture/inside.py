"""What a process of a run does, counted, and broken at the n-th thing of a kind. In: a log, a fault. Out: lines.

Nothing is replaced: functions of the trainer are wrapped to know in which phase it is, files that are opened, made,
renamed or removed below a folder are heard by an audit hook, layers and optimizers by torch's own hooks. What a step
trained on is told when its update is done, from the batches that it was given.
"""

import functools
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from benchmarks.torture.gpu import answers
from benchmarks.torture.log import Log
from bigqa.engine.loop import checkpoint, feed, fit
from bigqa.engine.loop.stop import PARENT_VARIABLE
from bigqa.nullgpu.environment import on_null_gpu
from bigqa.run import fine_tuning, launcher

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate"}
PHASES = ("start", "features", "restore", "step", "between", "save", "evaluation", "handover", "switch")
WRAPPED: tuple[tuple[Any, str, str], ...] = (
    (fine_tuning, "make_rows", "features"),
    (fine_tuning, "_restore", "restore"),
    (checkpoint, "save", "save"),
    (fit, "_evaluated", "evaluation"),
    (fine_tuning, "hand_over", "handover"),
    (fine_tuning, "step_down", "switch"),
    (launcher, "step_down", "switch"),
)


@dataclass(frozen=True)
class Moment:
    """The n-th thing that is done in a phase, and how long after it."""

    phase: str
    number: int
    rank: int = 0
    delay_ms: float = 0.0


class Inside:
    """Looks on in this process."""

    def __init__(self, log: Log, folder: Path, faults: list[tuple[Moment, Callable[[], None]]]) -> None:
        self.log, self.folder, self.faults = log, str(folder), faults
        self.phase, self.counts = "start", Counter[str]()
        self._is_there, self._is_acting, self.step = False, False, 0
        self._windows: list[int] = []
        self._main = threading.get_ident()
        self._made: dict[int, tuple[Any, list[int]]] = {}
        self._batched: list[int] = []
        self._of_step: dict[int, list[int]] = {}
        self._answers: Any = None

    def begin(self) -> None:
        """Look on in this process from now on; one that was forked while it was looked on in begins anew."""
        self.phase, self.counts, self._main = "start", Counter(), threading.get_ident()
        if on_null_gpu() and PARENT_VARIABLE in os.environ:
            self._answers = answers()
        self.log.tell("process", role=os.path.basename(sys.argv[0]))
        if self._is_there:
            return
        self._is_there = True
        for owner, name, phase in WRAPPED:
            setattr(owner, name, self._in_phase(phase, getattr(owner, name)))
        fine_tuning.fit = self._in_phase("between", self._fit)  # type: ignore[assignment]
        fit.train_step = self._in_phase("step", self._train_step)
        feed.Feed._batch = self._batch_of(feed.Feed._batch)  # type: ignore[method-assign]
        feed.Feed._make = self._make_of(feed.Feed._make)  # type: ignore[method-assign]
        sys.addaudithook(self._heard)
        torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: self.happened())
        register_optimizer_step_pre_hook(lambda *_: self.happened())
        register_optimizer_step_post_hook(lambda *_: self.happened())

    def happened(self) -> None:
        """Count one thing of this phase; do what is to be done after it."""
        if self._is_acting:
            return
        self.counts[self.phase] += 1
        place = self.phase, self.counts[self.phase] - 1, int(os.environ.get("RANK", "0"))
        for index, (moment, deed) in enumerate(self.faults):
            if place == (moment.phase, moment.number, moment.rank) and self._is_first(index):
                self._soon(moment, deed)

    def _soon(self, moment: Moment, deed: Callable[[], None]) -> None:
        def do() -> None:
            self.log.tell("fault", phase=moment.phase, number=moment.number)
            deed()

        self._is_acting = True
        try:
            if moment.delay_ms:
                threading.Timer(moment.delay_ms / 1000, do).start()
            else:
                do()
        finally:
            self._is_acting = False

    def _is_first(self, index: int) -> bool:
        """Whether no process of this start has done this yet."""
        try:
            os.close(os.open(f"{self.log.path}.{index}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and not self._is_acting and threading.get_ident() == self._main:
            path = os.fspath(args[0]) if isinstance(args[0], (str, os.PathLike)) else ""
            in_tree = event in ("os.remove", "os.rmdir") and args[1] != -1  # by its name in a folder that is open
            if in_tree or str(path).startswith(self.folder):
                self.happened()

    def _in_phase(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def within(*args: Any, **options: Any) -> Any:
            before, self.phase = self.phase, phase
            self.happened()
            try:
                result = function(*args, **options)
                self._tell(phase, args, result)
                return result
            finally:
                self.happened()
                self.phase = before

        return within

    def _tell(self, phase: str, args: tuple[Any, ...], result: Any) -> None:
        """Say what is done, as far as it counts."""
        if phase == "save":
            self.log.tell("saved", step=args[1])
        elif phase == "restore":
            self.log.tell("restored", step=result)
        elif phase == "handover":
            self.log.tell("counts", **self.counts)

    def _train_step(self, parts: Any, batches: list[Any], num_windows: int) -> Any:
        own = [batch for batch in batches if "weight" not in batch]
        self._windows = [window for batch in own for window in self._windows_of(batch)]
        if own and own[0]["input_ids"].is_cuda:  # these are copies: what they were made of is known by the step alone
            self._windows = self._of_step.pop(self.step)
        return STEP(parts, batches, num_windows)

    def _fit(self, training: Any, first_step: int = 0) -> Any:
        self.step = first_step
        self.log.tell("first", step=first_step)
        update = training.parts.update
        update.step = self._around(update.step)
        try:
            return FIT(training, first_step)
        finally:
            self.log.tell("counts", **self.counts)

    def _around(self, function: Callable[[], Any]) -> Callable[[], Any]:
        def around() -> Any:
            self.happened()
            result = function()
            self.log.tell("step", step=self.step, windows=self._windows)
            self.step += 1
            self.happened()
            return result

        return around

    def _batch_of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Remember which windows a batch was made of."""

        def made(of_feed: Any, positions: list[int]) -> Any:
            batch = function(of_feed, positions)
            self._made[id(batch["input_ids"])] = batch["input_ids"], list(positions)
            self._batched += positions
            return batch

        return made

    def _make_of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Remember which windows a step's batches were made of."""

        def made(of_feed: Any, step: int) -> Any:
            self._batched = []
            batches = function(of_feed, step)
            self._of_step[step] = self._batched
            return batches

        return made

    def _windows_of(self, batch: Any) -> list[int]:
        return self._made.pop(id(batch["input_ids"]), (None, []))[1]


FIT, STEP = fit.fit, fit.train_step


def jumping_clock(seconds: float) -> None:
    """Have the wall clock of this process be so much ahead from now on."""
    real = time.time
    time.time = lambda: real() + seconds  # type: ignore[assignment]
