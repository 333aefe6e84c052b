"""The file of `bigqa sweep`: what every trial has, and what is searched. In: YAML or JSON. Out: a `Search`, checked.

train:                                # options of `bigqa train`, as there
  model: bert-base
  train-file: train.json
  dev-file: dev.json
search:
  lr: {from: 1e-5, to: 1e-4, log: true}
  epochs: [2, 3, 4]
trials: 20
early-stop: true                      # what is worse than the median of the others is ended
seed: 42                              # of the search; that of the runs is an option of theirs
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bigqa.errors import UsageError, in_a_line
from bigqa.files import read_text
from bigqa.language import tr
from bigqa.ranges import RANGES, number
from bigqa.runs.words import as_plain, known, names, options_of, value_of

FIELDS = ["train", "search", "trials", "early_stop", "seed", "name"]
SPAN_FIELDS = ["from", "to", "log", "step"]
SAME = ("task", "train_file", "dev_file", "limit", "metric", "eval_every", "eval_times", "eval_on", "seed",
        "num_processes", "device", "text", "text_pair", "label", "save_every", "keep", "plan")  # fmt: skip
"""What is no axis of a search: with other data or another score, trials could not be compared."""
EVAL_TIMES = 5
"""Scores as a trial trains, where it may be ended early."""


@dataclass(frozen=True)
class Choices:
    """Some values."""

    values: tuple[Any, ...]

    @property
    def asked(self) -> list[Any]:
        """As a file has it."""
        return list(self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        """What a search may come to at most."""
        return self.values

    @property
    def size(self) -> int | None:
        """How many values there are."""
        return len(self.values)


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`. `log`: as many in each tenfold; `step`: in steps from the lowest."""

    low: float
    high: float
    log: bool
    whole: bool
    step: float | None

    @property
    def asked(self) -> dict[str, Any]:
        """As a file has it."""
        return {"from": self.low, "to": self.high, "log": self.log, "step": self.step}

    @property
    def ends(self) -> tuple[Any, ...]:
        """Its two ends."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    @property
    def size(self) -> int | None:
        """How many values there are; none where there is no end of them."""
        step = self.step or (1 if self.whole else None)
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1


Axis = Choices | Span


@dataclass(frozen=True)
class Search:
    """What is searched. `options`: what every trial has."""

    name: str
    options: dict[str, Any]
    axes: dict[str, Axis]
    trials: int
    stops_early: bool
    seed: int

    @property
    def asked(self) -> dict[str, Any]:
        """What makes it this search and no other, whatever the folders are called where its data lie."""
        plain = as_plain(self.options)
        for name in ("train_file", "dev_file", "nvme"):
            if name in plain:
                plain[name] = Path(plain[name]).name
        free = {"device", "num_processes", "check", "save_every"}
        kept = {name: value for name, value in plain.items() if name not in free}
        axes = {name: axis.asked for name, axis in self.axes.items()}
        return {"options": kept, "search": axes, "early_stop": self.stops_early, "seed": self.seed}

    @property
    def size(self) -> int | None:
        """How many different trials there can be; none where there is no end of them."""
        sizes = [axis.size for axis in self.axes.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield options with which each end of each axis occurs, the others at their first."""
        first = {name: axis.ends[0] for name, axis in self.axes.items()}
        yield self.options | first
        for name, axis in self.axes.items():
            for value in axis.ends[1:]:
                yield self.options | first | {name: value}

    def largest(self) -> Iterator[dict[str, Any]]:
        """Yield, for each model, the options that need the most memory."""
        most = {name: max(self.axes[name].ends) for name in ("seq_len", "global_batch") if name in self.axes}
        models = self.axes["model"].ends if "model" in self.axes else (self.options.get("model"),)
        first = {name: axis.ends[0] for name, axis in self.axes.items()}
        for model in models:
            yield self.options | first | most | {"model": model}


def read_search(file: Path) -> Search:
    """Read a search. Raises: UsageError that names file and field."""
    value = _parsed(file)
    fields = {known(str(name), FIELDS, str(file)): one for name, one in value.items()}
    options = options_of(_mapping(fields, "train", file), f"{file}: train")
    spoken = _mapping(fields, "search", file)
    axes = {}
    for field, one in spoken.items():
        name = known(str(field), [name for name in names() if name not in SAME], f"{file}: search")
        axes[name] = _axis(name, one, f"{file}: search: {field}")
    if twice := sorted(set(axes) & set(options)):
        raise UsageError(
            tr(
                "{file}: {twice} is under train and under search: leave one out",
                file=file,
                twice=twice[0].replace("_", "-"),
            )
        )
    if not axes:
        raise UsageError(tr("{file}: search is empty: what is to be tried?", file=file))
    stops_early = fields.get("early_stop", True)
    if not isinstance(stops_early, bool):
        raise UsageError(
            tr("{file}: early-stop is {stops_early!r}; write true or false", file=file, stops_early=stops_early)
        )
    return Search(
        name=str(fields.get("name", file.stem)),
        options=_scored(options, stops_early, file),
        axes=axes,
        trials=_number(fields, "trials", 20, file),
        stops_early=stops_early,
        seed=_number(fields, "seed", 42, file),
    )


def _scored(options: dict[str, Any], stops_early: bool, file: Path) -> dict[str, Any]:
    """Return options with which trials can be compared. Raises: UsageError."""
    if options.get("dev_file") is None:
        raise UsageError(tr("{file}: train has no dev-file: what are trials to be scored on?", file=file))
    if not stops_early:
        return options
    if options.get("eval_every") is not None:
        raise UsageError(
            tr(
                "{file}: with early-stop, trials are compared at the same share of each: write eval-times in "
                "the place of eval-every, or early-stop: false",
                file=file,
            )
        )
    return {"eval_times": EVAL_TIMES} | options


def _parsed(file: Path) -> dict[Any, Any]:
    try:
        value = yaml.safe_load(read_text(file, tr("the sweep's file")))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = tr(", line {number}", number=mark.line + 1) if mark is not None else ""
        problem = getattr(error, "problem", None) or in_a_line(error)
        raise UsageError(tr("{file}{where}: no YAML: {problem}", file=file, where=where, problem=problem)) from None
    if not isinstance(value, dict):
        raise UsageError(
            tr("{file}: {kind} where fields are wanted: train, search, trials", file=file, kind=type(value).__name__)
        )
    return value


def _mapping(fields: Mapping[str, Any], name: str, file: Path) -> dict[Any, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise UsageError(
            tr(
                "{file}: {name} is {value}; write fields under it",
                file=file,
                name=name,
                value=tr("missing") if value is None else repr(value),
            )
        )
    return value


def _number(fields: Mapping[str, Any], name: str, default: int, file: Path) -> int:
    try:
        return int(number(name, name)(fields.get(name, default)))
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def _axis(name: str, value: Any, where: str) -> Axis:
    if isinstance(value, list) and value:
        values = tuple(value_of(name, one, where) for one in value)
        if len(set(values)) < len(values):
            raise UsageError(tr("{where}: a value is there twice", where=where))
        return Choices(values)
    if isinstance(value, dict) and name in RANGES:
        return _span(name, value, where)
    alone, more = tr("a list of values"), tr("a list of values, or {span}", span="{from: ..., to: ...}")
    wanted = more if name in RANGES else alone
    raise UsageError(tr("{where} is {value!r}; write {wanted}", where=where, value=value, wanted=wanted))


def _span(name: str, value: dict[Any, Any], where: str) -> Span:
    fields = {known(str(field), SPAN_FIELDS, where): one for field, one in value.items()}
    if missing := [field for field in ("from", "to") if field not in fields]:
        raise UsageError(tr("{where}: {missing} is missing", where=where, missing=missing[0]))
    low, high = (value_of(name, fields[field], f"{where}: {field}") for field in ("from", "to"))
    log, whole, step = fields.get("log", False), RANGES[name].whole, fields.get("step")
    if not isinstance(log, bool):
        raise UsageError(tr("{where}: log is {log!r}; write true or false", where=where, log=log))
    if low >= high:
        raise UsageError(tr("{where}: from {low} is not below to {high}", where=where, low=low, high=high))
    if log and (low <= 0 or step is not None):
        raise UsageError(tr("{where}: log wants numbers above 0, and no step", where=where))
    if step is not None:
        step = _step(step, whole, where)
    return Span(low, high, log, whole, step)


def _step(value: Any, whole: bool, where: str) -> float:
    try:
        step = float(value)
    except (TypeError, ValueError):
        step = math.nan
    if isinstance(value, bool) or not (math.isfinite(step) and step > 0) or (whole and step != int(step)):
        raise UsageError(
            tr(
                "{where}: step is {value!r}; write {wanted} above 0",
                where=where,
                value=value,
                wanted=tr("a whole number") if whole else tr("a number"),
            )
        )
    return step
