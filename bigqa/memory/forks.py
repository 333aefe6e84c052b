"""One function over many arguments, on all cores. In: a function and arguments. Out: its results, in order.

A fork shares what is imported, so a worker costs milliseconds instead of the seconds that torch takes to import. Only
for work that touches no GPU, such as tracing.
"""

import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

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
    # A fork of a process that has a CUDA context cannot use the card, which autograd's threads look at.
    if workers < 2 or torch.cuda.is_initialized():
        return [function(argument) for argument in arguments]
    _function = function  # inherited by the workers, so it need not be picklable
    try:
        # One thread each: a fork that wakes the threads of its parent, which it does not have, waits for ever.
        pool_of_forks = ProcessPoolExecutor(
            workers, get_context("fork"), initializer=torch.set_num_threads, initargs=(1,)
        )
        with warnings.catch_warnings(), pool_of_forks as pool:
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which sit idle here
            return list(pool.map(_call, arguments))
    finally:
        _function = None


def _call(argument: Any) -> Any:
    assert _function is not None
    return _function(argument)
