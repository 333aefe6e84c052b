"""Random bits for dropout on a CPU. In: a shape, a probability, a seed. Out: integers whose sign says what is dropped.

torch draws one number after the other from one generator: 6 ns for an element, more than the product that it is for.
numpy's SFC64 (Doty-Humphrey, PractRand) gives 64 bits in 1.7 ns, and eight elements share them. Seeds come from torch's
generator, so that runs repeat, and layers that are recomputed drop the same.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEVELS = 256
"""A byte's values. A call drops k or k + 1 of them, by lot: each element is dropped with exactly the probability."""


def draw_seed() -> int:
    """Return a seed from torch's generator."""
    return int(torch.randint(0, 2**62, (1,)))


def dropping_signs(shape: Sequence[int], probability: float, seed: Sequence[int], like: Tensor) -> Tensor:
    """Return integers as wide as `like`'s elements, negative with a probability."""
    dtype = torch.int16 if like.element_size() == 2 else torch.int32
    if like.is_meta:
        return torch.empty(shape, dtype=dtype, device="meta").random_()  # so that a trace counts the draw
    count = math.prod(shape)
    generator = np.random.SFC64(seed)
    words = generator.random_raw(1 + -(-count // 8))
    level = math.floor(probability * LEVELS + float(words[0]) / 2**64)
    drawn = torch.from_numpy(words[1:].view(np.int8))[:count].view(tuple(shape))
    return drawn.to(dtype).sub_(level - LEVELS // 2)
