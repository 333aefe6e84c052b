"""What numbers a person may give: one range for each name, in every command, setting, plan and config.

In: words of a command line, or values of a file. Out: a number within its range; else one line that names the option,
what was given and what is wanted. Digits are 0 to 9: Python's own reading takes those of every script, and NaN.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from bigqa.errors import UsageError
from bigqa.language import Text, tr
from bigqa.units import parse_bytes, parse_seconds

WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
SHOWN = 40
"""Characters of what was given that an error repeats."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; an open end is not one of them."""

    low: float
    high: float
    whole: bool = True
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies within; NaN does not."""
        above = self.low < value if self.low_open else self.low <= value
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        return str(self.words)

    @property
    def words(self) -> Text:
        """Say which numbers these are, such as "a whole number from 1 to 8"."""
        kind = tr("a whole number") if self.whole else tr("a number")
        if self.low_open:
            to = tr("and below {high}", high=self.high) if self.high_open else tr("and at most {high}", high=self.high)
            return tr("{kind} above {low} {to}", kind=kind, low=self.low, to=to)
        to = tr("and below {high}", high=self.high) if self.high_open else tr("to {high}", high=self.high)
        return tr("{kind} from {low} {to}", kind=kind, low=self.low, to=to)


MANY = 10**9
"""More steps, or questions, than a run has."""
LONG = 2**20
"""More tokens than a window has, and more windows than a step."""

RANGES = {
    "seed": Range(0, 2**63 - 1),
    "epochs": Range(0, 10_000, whole=False, low_open=True),
    "max_steps": Range(1, MANY),
    "global_batch": Range(1, LONG),
    "micro_batch": Range(1, LONG),
    "seq_len": Range(16, LONG),
    "doc_stride": Range(1, LONG),
    "max_query_length": Range(1, LONG),
    "max_answer_length": Range(1, LONG),
    "lr": Range(0, 10, whole=False, low_open=True),
    "warmup": Range(0, 1, whole=False),
    "weight_decay": Range(0, 10, whole=False),
    "adam_eps": Range(0, 1, whole=False, low_open=True),
    "clip": Range(0, 10**9, whole=False, low_open=True),
    "null_threshold": Range(-(10**6), 10**6, whole=False),
    "dropout": Range(0, 1, whole=False, high_open=True),
    "layer_decay": Range(0, 1, whole=False, low_open=True),
    "freeze_layers": Range(0, 10_000),
    "eval_on": Range(1, MANY),
    "warmup_steps": Range(0, MANY),
    "eval_every": Range(0, MANY),
    "eval_times": Range(1, MANY),
    "max_new_tokens": Range(1, LONG),
    "patience": Range(1, MANY),
    "label_smoothing": Range(0, 1, whole=False, high_open=True),
    "save_every": Range(1, MANY),
    "keep": Range(1, MANY),
    "step": Range(0, MANY),
    "limit": Range(1, MANY),
    "num_processes": Range(1, 256),
    "runs": Range(1, 10_000),
    "trials": Range(1, 100_000),
    "at_once": Range(1, 256),
    "gpus": Range(1, 1024),
    "nodes": Range(1, 1024),
    "tier": Range(0, 2),
    "steps": Range(1, 10**6),
    "timed_steps": Range(0, 10**6),
    "budget_s": Range(1, 10**8, whole=False),
    "case_s": Range(1, 10**8, whole=False),
    "world": Range(1, 2**20),
    "threads": Range(1, 4096),
    "memory": Range(1, 2**60),
    "until": Range(1, 10**8),
    "predicted_samples_per_s": Range(0, 10**9, whole=False),
}
"""By the name of the setting; sizes are in bytes, times in seconds. What a name means is said where it is a
field or an option."""


FORMS = {
    "memory": tr("a size such as 8GiB or 7600MiB"),
    "until": tr("a time from now such as 11h30m, 90m or 45s"),
}
"""How a number is written that has a unit."""


def option_of(name: str) -> str:
    """Return the option that a setting has."""
    return "--" + name.replace("_", "-")


def check(name: str, value: Any, option: str | None = None) -> None:
    """Refuse a number out of the range of its name. Raises: UsageError."""
    if not RANGES[name].holds(value):
        raise refusal(name, value, option)


def refusal(name: str, given: object, option: str | None = None) -> UsageError:
    """Say which number is wanted in the place of another one, or of what is none."""
    shown = str(given)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    wanted = FORMS[name] if name in FORMS else RANGES[name].words
    option = option or option_of(name)
    return UsageError(tr("{option}: {shown!r} is not {wanted}", option=option, shown=shown, wanted=wanted))


def number(name: str, option: str | None = None) -> Callable[[object], Any]:
    """Return what reads the option of a name, for `typer.Option(parser=...)`; what it reads is within the range."""
    found = RANGES[name]
    form, kind = (WHOLE, int) if found.whole else (DECIMAL, float)

    def read(given: object) -> Any:
        text = str(given).strip()
        if form.fullmatch(text) is None or not found.holds(kind(text)):
            raise refusal(name, given, option)
        return kind(text)

    return _named(read, "INTEGER" if found.whole else "NUMBER", name)


def of_environment(variable: str, name: str, default: int) -> int:
    """Return the number that an environment variable holds, where it is set. Raises: UsageError."""
    text = os.environ.get(variable)
    return int(number(name, variable)(text)) if text else default


def numbers(name: str, option: str | None = None) -> Callable[[object], tuple[int, ...]]:
    """Return what reads several numbers with commas between, such as "1,4,16"; none of an empty text."""
    return _several(number(name, option))


def size(option: str) -> Callable[[object], int]:
    """Return what reads a size as people write it, in bytes."""

    return _with_unit(parse_bytes, "SIZE", "memory", option)


def duration(name: str) -> Callable[[object], int]:
    """Return what reads a time as people write it, in seconds."""
    return _with_unit(parse_seconds, "TIME", name, None)


def sizes(option: str) -> Callable[[object], tuple[int, ...]]:
    """Return what reads several sizes with commas between, such as "8GiB,4GiB"; none of an empty text."""
    return _several(size(option))


def checked(read: Callable[[object], Any]) -> Callable[[object], str]:
    """Return what leaves a text as it is, where it can be read; a command's own words name it in what they print."""

    def same(given: object) -> str:
        read(given)
        return str(given)

    return _named(same, read.__name__, read.range_of)  # type: ignore[attr-defined]


def _with_unit(parse: Callable[[str], int], metavar: str, name: str, option: str | None) -> Callable[[object], int]:
    def read(given: object) -> int:
        try:
            found = parse(str(given))
            if RANGES[name].holds(found):
                return found
        except (ValueError, OverflowError):
            pass
        raise refusal(name, given, option)

    return _named(read, metavar, name)


def _several(one: Any) -> Callable[[object], tuple[Any, ...]]:
    def read(given: object) -> tuple[Any, ...]:
        return tuple(one(word) for word in str(given).split(",")) if given else ()

    return _named(read, f"{one.__name__},...", one.range_of)


def _named(read: Any, metavar: str, name: str) -> Any:
    # What typer shows as the option's kind; and what tells a number's option from a text's.
    read.__name__, read.range_of = metavar, name
    return read


class Ranged(BaseModel):
    """A frozen record whose numbers lie within the ranges of their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="after")
    @classmethod
    def _within(cls, value: Any, info: ValidationInfo) -> Any:
        found = RANGES.get(info.field_name or "")
        if found is not None and value is not None and not found.holds(value):
            raise ValueError(tr("not {wanted}", wanted=found.words))
        return value
