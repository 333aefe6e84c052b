"""The work of a step, counted while it is traced. In: operations. Out: FLOPs, bytes moved, kernels launched.

Matrix products and attention are counted in FLOPs (a multiplication and an addition are two); everything else is
counted in the bytes it reads and writes, which is what it costs.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from bigqa.engine.attention import windows
from bigqa.memory.shapes import tensors_in

VIEWS = {
    "view", "_unsafe_view", "transpose", "t", "expand", "slice", "select", "split", "unsqueeze", "squeeze", "detach",
    "alias", "permute", "as_strided", "reshape", "unbind", "lift_fresh", "_to_copy_view", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "split_with_sizes", "narrow",
}  # fmt: skip
WITH_WEIGHTS = {"mm", "addmm", "linear"}
_flops: dict[Any, int] = {}


class Work:
    """Counters of one step."""

    def __init__(self) -> None:
        self.flops = 0
        self.batched_flops = 0
        """The part of them that is attention's."""
        self.moved_bytes = 0
        self.drawn = 0
        """Random elements."""
        self.operations = 0

    def add(self, func: Any, key: Any, args: tuple[Any, ...], result: Any, made_bytes: int) -> None:
        """Count one operation; `key` tells its shapes, and with them its FLOPs."""
        name, count = _kind(func)
        times = windows.STANDS_FOR.get()
        if count is not None:
            flops = times * _flops_of(count, key, args, result)
            self.flops += flops
            self.batched_flops += flops if name not in WITH_WEIGHTS else 0
        elif name == "random_":
            self.drawn += times * args[0].numel()
        elif name not in VIEWS:
            self.moved_bytes += times * (sum(map(_bytes, tensors_in(args))) + made_bytes)
        else:
            return
        self.operations += times


@functools.cache
def _kind(func: Any) -> tuple[str, Callable[..., int] | None]:
    """Return an operation's name, and what counts its FLOPs if it is of those that are counted."""
    packet = func.overloadpacket
    return packet.__name__, flop_registry.get(packet)


def _flops_of(count: Callable[..., int], key: Any, args: tuple[Any, ...], result: Any) -> int:
    if key is None:
        return count(*args, out_val=result)
    if key not in _flops:
        _flops[key] = count(*args, out_val=result)
    return _flops[key]


def _bytes(tensor: Tensor) -> int:
    if tensor.is_contiguous():
        return tensor.nbytes
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
