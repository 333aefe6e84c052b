"""One function over many arguments, on all cores. In: a function and arguments. Out: its results, in order.

A fork shares what is imported, so a worker costs milliseconds instead of the seconds that torch takes to import. Only
for work that touches neither a GPU nor torch's threads, such as tracing.
"""

import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

WORKERS_VARIABLE = "BIGQA_WORKERS"
"""Limits the workers; 1: no forks."""
A = TypeVar("A")
B = TypeVar("B")
_function: Callable[[Any], Any] | None = None


def in_forks(function: Callable[[A], B], arguments: list[A]) -> list[B]:
    """Return `function` of each argument; in this process where forks are not safe or do not pay."""
    global _function
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    workers = min(len(arguments), int(os.environ.get(WORKERS_VARIABLE, cores)))
    if workers < 2:
        return [function(argument) for argument in arguments]
    _function = function  # inherited by the workers, so it need not be picklable
    try:
        with warnings.catch_warnings(), ProcessPoolExecutor(workers, get_context("fork")) as pool:
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which sit idle here
            return list(pool.map(_call, arguments))
    finally:
        _function = None


def _call(argument: Any) -> Any:
    assert _function is not None
    return _function(argument)
