"""One function over many arguments, on all cores. In: a function and arguments. Out: its results, in order.

A fork shares what is imported, so a worker costs milliseconds instead of the seconds that torch takes to import. Only
for work that touches no GPU, such as tracing.
"""

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from bigqa.ranges import of_environment

WORKERS_VARIABLE = "BIGQA_WORKERS"
"""Limits the workers; 1: no forks."""
PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: the signal that a process gets when the thread that made it ends."""
A = TypeVar("A")
B = TypeVar("B")
_function: Callable[[Any], Any] | None = None


def in_forks(function: Callable[[A], B], arguments: list[A]) -> list[B]:
    """Return `function` of each argument; in this process where forks are not safe or do not pay."""
    global _function
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    workers = min(len(arguments), of_environment(WORKERS_VARIABLE, "threads", cores))
    # A fork of a process that has a CUDA context cannot use the card, which autograd's threads look at.
    if workers < 2 or torch.cuda.is_initialized():
        return [function(argument) for argument in arguments]
    _function = function  # inherited by the workers, so it need not be picklable
    try:
        pool_of_forks = ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin, initargs=(os.getpid(),))
        with warnings.catch_warnings(), pool_of_forks as pool:
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which sit idle here
            return list(pool.map(_call, arguments))
    finally:
        _function = None


def _begin(parent: int) -> None:
    # A fork that wakes the threads of its parent, which it does not have, waits for ever.
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # Nor does it wait for work from a parent that was killed.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _call(argument: Any) -> Any:
    assert _function is not None
    return _function(argument)
