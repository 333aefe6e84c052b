"""A command's options as a function's arguments. In: names and values. Out: the words of a command line."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.ranges import option_of

ELSE = {"keep_best": "--keep-last"}
"""Options whose contrary does not begin with --no-."""


def words_of(signature: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """Return the words for what was given; none is not given. Raises: UsageError for another name."""
    known = inspect.signature(signature).parameters
    words = []
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            if near:
                raise UsageError(tr("there is no option {name}; {near}?", name=name, near=near[0]))
            raise UsageError(tr("there is no option {name}", name=name))
        if value is True:
            words.append(option_of(name))
        elif value is False:
            words.append(ELSE.get(name, f"--no-{name.replace('_', '-')}"))
        elif value is not None:
            words.append(f"{option_of(name)}={value}")
    return words
