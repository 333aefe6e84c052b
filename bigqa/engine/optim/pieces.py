"""A parameter piece by piece: what an optimizer holds for a moment stays small. In: a flat tensor. Out: slices."""

from collections.abc import Iterator

from torch import Tensor

from bigqa.engine.attention.windows import standing_for

PIECE = 2**22
"""Elements, a multiple of bitsandbytes' blocks: 16 MiB of each fp32 temporary. Smaller pieces are slower on a CPU."""


def pieces_of(flat: Tensor) -> Iterator[slice]:
    """Yield the pieces of a flat tensor; without data, the first stands for all."""
    count = flat.numel()
    if flat.is_meta:
        with standing_for(-(-count // PIECE)):
            yield slice(0, min(PIECE, count))
        return
    for begin in range(0, count, PIECE):
        yield slice(begin, begin + PIECE)
