"""The trials of a sweep: which comes next, which are lost, what each came to. In: a search, a storage. Out: trials.

Trials are told apart by Optuna's states and three attributes. A trial that FAILED with a `problem` said why and is not
tried again; one that is `surplus` was one too many, or the same as another; of all others the process is gone, and its
trial comes again with the same parameters, as a new one that names its first as its `root`: the run folder is that
one's, so that training goes on from its last checkpoint. Whether a process is gone is seen on its own machine; from
others, by a beat that it writes and that stands still.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.runs.search import Choices, Search
from bigqa.runs.storage import at_last
from bigqa.who import is_gone, me

BEAT_S, GONE_S = 20.0, 120.0
"""Between two beats; and since the last one that was seen to change."""
NAMELESS_S = 30.0
"""The same of a trial whose process has not yet said who it is, which it does at once."""
TRIES = 20
"""Starts of one trial that processes die of."""
SAME_AS_OTHERS = 30
"""Trials in a row that others were the same as: there is nothing new to be found."""


@dataclass
class Asked:
    """A trial that this process carries out."""

    trial: Any
    """Optuna's."""
    params: dict[str, Any]
    root: int
    reported: set[int] = field(default_factory=set)
    beat: int = 0
    beat_at: float = field(default_factory=time.monotonic)

    @property
    def number(self) -> int:
        """Its number in the storage."""
        return int(self.trial.number)


class Study:
    """One search in one storage."""

    def __init__(self, search: Search, storage: Any, *, least: bool) -> None:
        import optuna

        self.search, self.storage = search, storage
        self.states = optuna.trial.TrialState
        pruner = optuna.pruners.MedianPruner() if search.stops_early else optuna.pruners.NopPruner()
        self._study = at_last(
            lambda: optuna.create_study(
                storage=storage,
                study_name=search.name,
                direction="minimize" if least else "maximize",
                load_if_exists=True,
                pruner=pruner,
            )
        )
        self._me = me()
        self._seen: dict[int, tuple[Any, float]] = {}
        self._own: set[int] = set()
        self._check_same()

    def _check_same(self) -> None:
        """Refuse a study of another search. Raises: BigqaError that names what differs."""
        kept, asked = at_last(lambda: self._study.user_attrs).get("asked"), self.search.asked
        if kept is None:
            at_last(lambda: self._study.set_user_attr("asked", asked))
            return
        for part in asked:
            one, other = kept.get(part), asked[part]
            if one != other:
                raise BigqaError(
                    tr(
                        "the study {name!r} in this storage was begun with another {part} ({difference}): "
                        "give this one another name in its file (name: ...), or another --out",
                        name=self.search.name,
                        part=part.replace("_", "-"),
                        difference=_difference(one, other),
                    )
                )

    def trials(self) -> list[Any]:
        """Return all trials as Optuna keeps them, but those that were one too many."""
        found = at_last(lambda: self._study.get_trials(deepcopy=False))
        return [trial for trial in found if "surplus" not in trial.user_attrs]

    def is_lost(self, trial: Any) -> bool:
        """Whether a trial ended because its process did."""
        return trial.state == self.states.FAIL and "problem" not in trial.user_attrs

    def seats(self) -> int:
        """Return how many trials of the search are over, go on or wait."""
        return sum(not self.is_lost(trial) for trial in self.trials())

    def over(self) -> int:
        """Return how many trials have a result, or said why they have none."""
        return sum(trial.state.is_finished() and not self.is_lost(trial) for trial in self.trials())

    def running_elsewhere(self) -> int:
        """Return how many trials other processes carry out, or wait to be."""
        going = (self.states.RUNNING, self.states.WAITING)
        return sum(trial.state in going and trial.number not in self._own for trial in self.trials())

    def ask(self) -> Asked | None:
        """Return the next trial; none where all there are to be are there. A lost one comes first."""
        self.take_up_lost()
        for _ in range(SAME_AS_OTHERS):
            waiting = any(trial.state == self.states.WAITING for trial in self.trials())
            if not waiting and (self.seats() >= self.search.trials or self._all_tried()):
                return None
            trial = at_last(self._study.ask)
            self._own.add(trial.number)
            at_last(lambda trial=trial: trial.set_user_attr("who", self._me))  # type: ignore[misc]
            root = trial.user_attrs.get("root", trial.number)
            before = [one for one in self.trials() if one.number < trial.number and not self.is_lost(one)]
            params = self._suggested(trial)
            same = any(one.params == params for one in before)
            if (len(before) >= self.search.trials and root == trial.number) or same:
                self._surplus(trial)
                continue
            return Asked(trial, params, root)
        return None

    def take_up_lost(self) -> None:
        """Give trials back to be tried again whose processes are gone."""
        trials = self.trials()
        for trial in trials:
            if trial.state == self.states.RUNNING and trial.number not in self._own and self._is_gone(trial):
                self._finish(trial.number, state=self.states.FAIL)
        trials = self.trials()
        roots: dict[int, list[Any]] = {}
        for trial in trials:
            roots.setdefault(trial.user_attrs.get("root", trial.number), []).append(trial)
        for root, starts in roots.items():
            last = starts[-1]
            if self.is_lost(last) and last.params and len(starts) < TRIES:
                params, attrs = dict(last.params), {"root": root}
                at_last(lambda params=params, attrs=attrs: self._study.enqueue_trial(params, user_attrs=attrs))  # type: ignore[misc]

    def beat(self, asked: Asked) -> None:
        """Show others that a trial goes on."""
        if time.monotonic() - asked.beat_at > BEAT_S:
            asked.beat_at, asked.beat = time.monotonic(), asked.beat + 1
            at_last(lambda: asked.trial.set_user_attr("beat", asked.beat))

    def report(self, asked: Asked, part: int, value: float) -> bool:
        """Take a score as a trial goes on; return whether it is worse than the median of the others at that part."""
        if part in asked.reported:
            return False
        asked.reported.add(part)
        at_last(lambda: asked.trial.report(value, part))
        return bool(at_last(asked.trial.should_prune))

    def note(self, asked: Asked, **attributes: Any) -> None:
        """Keep what a trial's row is to show."""
        for name, value in attributes.items():
            at_last(lambda name=name, value=value: asked.trial.set_user_attr(name, value))  # type: ignore[misc]

    def tell(self, asked: Asked, value: float | None = None, *, pruned: bool = False, problem: str = "") -> None:
        """Say what a trial came to; nothing at all: it was stopped, and comes again."""
        if problem:
            at_last(lambda: asked.trial.set_user_attr("problem", problem[:900]))
        if pruned:
            self._finish(asked.number, state=self.states.PRUNED)
        elif value is None:
            self._finish(asked.number, state=self.states.FAIL)
        else:
            self._finish(asked.number, values=value)

    def _finish(self, number: int, **how: Any) -> None:
        """Tell an end, unless another process has; a trial that was taken for dead stays what it was made."""
        from optuna.exceptions import UpdateFinishedTrialError

        def tell() -> None:
            with contextlib.suppress(UpdateFinishedTrialError):
                self._study.tell(number, skip_if_finished=True, **how)

        at_last(tell)

    def _surplus(self, trial: Any) -> None:
        at_last(lambda: trial.set_user_attr("surplus", True))
        self._finish(trial.number, state=self.states.FAIL)

    def _suggested(self, trial: Any) -> dict[str, Any]:
        """Return a trial's parameters. Seeded by its number: a search that is gone on with does not begin anew."""
        import optuna

        seed = (self.search.seed * 1_000_003 + trial.number) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return at_last(lambda: {name: self._one(trial, name) for name in self.search.axes})

    def _one(self, trial: Any, name: str) -> Any:
        axis = self.search.axes[name]
        if isinstance(axis, Choices):
            return trial.suggest_categorical(name, list(axis.values))
        if axis.whole:
            step = int(axis.step or 1)
            return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log, step=step)
        return trial.suggest_float(name, axis.low, axis.high, log=axis.log, step=axis.step)

    def _all_tried(self) -> bool:
        size = self.search.size
        kept = (trial for trial in self.trials() if not self.is_lost(trial))
        return size is not None and len({tuple(sorted(trial.params.items())) for trial in kept}) >= size

    def _is_gone(self, trial: Any) -> bool:
        who = trial.user_attrs.get("who")
        if who is not None and (gone := is_gone(who)) is not None:
            return gone
        now, beat = time.monotonic(), trial.user_attrs.get("beat")
        known, since = self._seen.setdefault(trial.number, (beat, now))
        if known != beat:
            self._seen[trial.number] = (beat, now)
            return False
        return now - since > (GONE_S if who is not None else NAMELESS_S)


def _difference(one: Any, other: Any) -> str:
    """Say where two values differ, by the first field that does."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        key = next(key for key in (*one, *other) if one.get(key) != other.get(key))
        return f"{str(key).replace('_', '-')}: then {one.get(key, 'none')}, now {other.get(key, 'none')}"
    return f"then {one}, now {other}"
