"""Where traces come from: whoever estimates may keep them. In: the name of a trace. Out: it."""

import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Keep(Protocol):
    """Returns the trace of a name: one that was made before, else a new one."""

    def __call__(self, kind: type[T], what: tuple[Any, ...], make: Callable[[], T]) -> T:
        """`kind`: the dataclass that a trace is; `what`: tells it from the others of its model and task."""
        ...


def settled(make: Callable[[], T]) -> T:
    """Make a trace in which no library is imported for the first time: that may make tensors of its own."""
    before = len(sys.modules)
    made = make()
    return made if len(sys.modules) == before else make()


def make_anew(kind: type[T], what: tuple[Any, ...], make: Callable[[], T]) -> T:
    """Keep nothing."""
    return settled(make)
