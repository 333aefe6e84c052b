"""Host tensors that nobody fills. In: a block of code that makes a model. Out: its tensors, with no memory behind them.

On a null GPU numbers mean nothing, and neither do those of the weights that are sent there. Inside of `unfilled()`,
operations on large tensors in host memory make what they would make, in shape, type and place, and write nothing: the
kernel gives a page of memory only to who writes to it. So a model of 7 billion parameters takes no host memory, and a
second. What is done on the GPU is done as ever.
"""

import contextlib
import mmap
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

LARGE_BYTES = 2**20
"""Smaller ones keep their values: someone may read them."""
MAP_NORESERVE = 0x4000
"""Of Linux: a fork of 28 GB that nobody fills is no more than the machine has (Python names the flag since 3.13)."""
FACTORIES = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default, torch.ops.aten.zeros.default)


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """Write nothing into large host tensors inside of the block."""
    with _Unfilled():
        yield


class _Unfilled(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES and _is_host(kwargs):
            return _on_host(func(*args, **kwargs | {"device": torch.device("meta"), "pin_memory": False}))
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if not _stays_in_host_memory(tensors, kwargs):
            return func(*args, **kwargs)
        if func is torch.ops.aten._pin_memory.default:
            return torch.empty_like(args[0], pin_memory=True)
        kinds = [one.alias_info for one in func._schema.returns]
        if any(kind is not None and kind.is_write for kind in kinds):
            return args[0]
        if any(kind is not None for kind in kinds):
            return func(*args, **kwargs)  # a view
        if not kinds:
            return None  # all is in place
        return _made_of_nothing(func, args, kwargs)


def _is_host(kwargs: dict[str, Any]) -> bool:
    to = kwargs.get("device")
    return (to is None or torch.device(to).type == "cpu") and not kwargs.get("pin_memory")


def _stays_in_host_memory(tensors: list[Tensor], kwargs: dict[str, Any]) -> bool:
    return _is_host(kwargs) and all(one.is_cpu for one in tensors) and any(one.nbytes >= LARGE_BYTES for one in tensors)


def _made_of_nothing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on shapes alone; return host tensors of the shapes that it makes."""

    def shape_of(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    if kwargs.get("device") is not None:
        kwargs = kwargs | {"device": torch.device("meta")}
    made = func(*tree_map(shape_of, args), **tree_map(shape_of, kwargs))
    return tree_map(lambda value: _on_host(value) if isinstance(value, Tensor) else value, made)


def _on_host(shape: Tensor) -> Tensor:
    """Return a host tensor of the shape of a meta one."""
    size = shape.untyped_storage().nbytes()
    if size < LARGE_BYTES:
        return torch.empty_strided(shape.size(), shape.stride(), dtype=shape.dtype, device="cpu")
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(memory, dtype=shape.dtype).as_strided(shape.size(), shape.stride())
