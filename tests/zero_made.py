"""Layouts of parameters for tests of ZeRO's replay. In: sizes. Out: a layout of one group."""

from collections.abc import Sequence

from bigqa.memory.zero.layout import Layout

MILLION = 2**20


def layout(*numels: int, modules: Sequence[Sequence[int]] = (), low: int = 2) -> Layout:
    """Return a layout of parameters that are placed in their order."""
    numbers = tuple(range(len(numels)))
    return Layout(numels, low, (numbers,), tuple((one, 0) for one in numbers), tuple(map(tuple, modules)))
