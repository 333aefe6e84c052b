"""Options of `bigqa train` as words of a command line, and values of a file as options. In: one. Out: the other."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from bigqa.errors import UsageError
from bigqa.language import put, tr
from bigqa.ranges import RANGES, number, option_of
from bigqa.run.options import train_signature

OWN = ("out", "resume", "push_to_hub")
"""Options of one run that several have not: each has a folder of its own."""


def names() -> list[str]:
    """Return the options that each of several runs may have."""
    return [name for name in inspect.signature(train_signature).parameters if name not in OWN]


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Return options as a person types them; those without a value are left out."""
    words: list[str] = []
    switches = _switches()
    for name, value in options.items():
        if value is None:
            continue
        if name in switches:
            words.append(switches[name][0 if value else 1])
        else:
            words += [option_of(name), str(value)]
    return words


def options_of(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a file gives for options, checked one by one. Raises: UsageError that names the field."""
    found = {}
    for field, value in values.items():
        name = known(str(field), names(), where)
        found[name] = value_of(name, value, where)
    return found


def value_of(name: str, value: Any, where: str) -> Any:
    """Return one option's value. YAML takes 1e-5 for text, so a number may be given as either. Raises: UsageError."""
    if name in _switches():
        if not isinstance(value, bool):
            raise UsageError(
                tr(
                    "{where}: {name} is {value!r}; write true or false",
                    where=where,
                    name=name.replace("_", "-"),
                    value=value,
                )
            )
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(
            tr(
                "{where}: {name} is {value!r}; write one text or number",
                where=where,
                name=name.replace("_", "-"),
                value=value,
            )
        )
    try:
        return number(name)(value) if name in RANGES else str(value)
    except UsageError as error:
        raise UsageError(put("{where}: {error}", where=where, error=error)) from None


def known(field: str, choices: list[str], where: str) -> str:
    """Return a field's name with underscores. Raises: UsageError that names what is most like it."""
    name = field.replace("-", "_")
    if name in choices:
        return name
    like = difflib.get_close_matches(name, choices, 1)
    shown = ", ".join(one.replace("_", "-") for one in choices)
    advice = (
        tr("is {field} meant?", field=like[0].replace("_", "-")) if like else tr("it may have {fields}", fields=shown)
    )
    raise UsageError(tr("{where} has an unknown field {field!r}: {advice}", where=where, field=field, advice=advice))


def as_plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a JSON file has them; those without a value are left out."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items() if value is not None
    }


def _switches() -> dict[str, tuple[str, str]]:
    """Return the options that are words by themselves -> the word for yes, and the word for no."""
    found = {}
    for name, parameter in inspect.signature(train_signature, eval_str=True).parameters.items():
        for part in get_args(parameter.annotation)[1:]:  # typer takes the first word of an Annotated for its default
            for word in (part.default, *(part.param_decls or ())):
                if isinstance(word, str) and "/" in word:
                    yes, no = word.split("/")
                    found[name] = (yes, no)
    return found
