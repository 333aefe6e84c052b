"""Which windows each optimizer step trains on. In: seed, number of windows, global batch. Out: indices.

Everything follows from (seed, step), so a resumed run, on any number of processes, sees the same data in
the same order.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True, kw_only=True)
class DataOrder:
    """The order of one run. An epoch's last batch may be smaller; it is trained on, never dropped."""

    num_windows: int
    global_batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the windows."""
        return math.ceil(self.num_windows / self.global_batch)

    def num_steps(self, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of the whole run."""
        planned = math.ceil(self.steps_per_epoch * epochs)
        return planned if max_steps is None else max_steps

    def batch(self, step: int) -> list[int]:
        """Return the windows of a step (counted from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        begin = position * self.global_batch
        return _epoch_order(self.num_windows, self.seed, epoch)[begin : begin + self.global_batch].tolist()


@lru_cache(maxsize=2)
def _epoch_order(num_windows: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    return torch.randperm(num_windows, generator=generator)


def mix_seed(*parts: int) -> int:
    """Return a 63-bit seed from several numbers, the same on every platform (splitmix64, Steele et al. 2014)."""
    mask = (1 << 64) - 1
    state = 0
    for part in parts:
        state = (state + (part & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


def share_of_process(lengths: list[int], rank: int, world_size: int) -> list[int]:
    """Return the positions within a global batch that a process takes, longest first.

    Windows are dealt out by length, there and back, so that all processes have as much to do.
    """
    by_length = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    rounds = [by_length[begin : begin + world_size] for begin in range(0, len(lengths), world_size)]
    places = ((rank if number % 2 == 0 else world_size - 1 - rank, dealt) for number, dealt in enumerate(rounds))
    return [dealt[place] for place, dealt in places if place < len(dealt)]
