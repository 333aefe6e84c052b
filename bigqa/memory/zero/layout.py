"""Parameters as DeepSpeed sees them. In: a model and its groups. Out: their sizes, by number; partitions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Layout:
    """A model's parameters, by their number in its own order."""

    numels: tuple[int, ...]
    element_bytes: int
    groups: tuple[tuple[int, ...], ...]
    """The optimizer's: parameters of each."""
    placed: tuple[tuple[int, int], ...]
    """In the order in which a model is moved: parameter and 0, or -1 and the bytes of a buffer."""
    modules: tuple[tuple[int, ...], ...]
    """Parameters of each module itself."""

    @property
    def buffers(self) -> list[int]:
        """Bytes of each buffer."""
        return [size for number, size in self.placed if number < 0]


def layout_of(model: nn.Module, groups: Sequence[Mapping[str, Any]], element_bytes: int) -> Layout:
    """Return a model's layout; all of its parameters are trained."""
    numbers = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    return Layout(
        numels=tuple(parameter.numel() for parameter in model.parameters()),
        element_bytes=element_bytes,
        groups=tuple(tuple(numbers[id(one)] for one in group["params"]) for group in groups),
        placed=tuple(_placed(model, numbers)),
        modules=tuple(
            tuple(sorted({numbers[id(one)] for one in module.parameters(recurse=False)})) for module in model.modules()
        ),
    )


def _placed(model: nn.Module, numbers: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Yield what `nn.Module.to` moves: children first, each parameter and each buffer once for each owner."""
    seen: set[int] = set()

    def visit(module: nn.Module) -> Iterator[tuple[int, int]]:
        for child in module.children():
            yield from visit(child)
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield numbers[id(parameter)], 0
        for buffer in module.buffers(recurse=False):
            yield -1, buffer.nbytes

    yield from visit(model)


@dataclass(frozen=True)
class Slice:
    """A part of a parameter that one partition holds."""

    partition: int
    start: int
    size: int


@dataclass(frozen=True)
class Partitions:
    """A flat group, cut evenly. Source: DeepSpeed, `stage_1_and_2.py`, `get_partition_info`."""

    padding: int
    """Elements that make the whole a multiple of twice the processes (`nccl_start_alignment_factor`)."""
    size: int
    """Elements of one partition."""
    slices: dict[int, tuple[Slice, ...]]
    """Of each parameter."""

    def of(self, partition: int) -> dict[int, Slice]:
        """Return what a partition holds, by parameter."""
        return {number: one for number, slices in self.slices.items() for one in slices if one.partition == partition}


def partitions_of(numels: Mapping[int, int], world_size: int) -> Partitions:
    """Cut a group."""
    total = sum(numels.values())
    padding = -total % (2 * world_size)
    size, begin = (total + padding) // world_size, 0
    slices: dict[int, tuple[Slice, ...]] = {}
    for number, numel in numels.items():
        found, at = [], 0
        while at < numel:
            partition = (begin + at) // size
            count = min(numel - at, (partition + 1) * size - begin - at)
            found.append(Slice(partition, at, count))
            at += count
        slices[number], begin = tuple(found), begin + numel
    return Partitions(padding, size, slices)
