"""The work of a step, counted while it is traced. In: operations. Out: FLOPs, bytes moved, kernels launched.

Matrix products and attention are counted in FLOPs (a multiplication and an addition are two); everything else is
counted in the bytes it reads and writes, which is what it costs.
"""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from bigqa.engine import windows

VIEWS = {
    "view", "_unsafe_view", "transpose", "t", "expand", "slice", "select", "split", "unsqueeze", "squeeze", "detach",
    "alias", "permute", "as_strided", "reshape", "unbind", "lift_fresh", "_to_copy_view", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "split_with_sizes", "narrow",
}  # fmt: skip


WITH_WEIGHTS = {"mm", "addmm", "linear"}


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

    def add(self, func: Any, args: tuple[Any, ...], result: Any, made_bytes: int) -> None:
        """Count one operation."""
        packet, times = func.overloadpacket, windows.STANDS_FOR.get()
        if packet in flop_registry:
            flops = times * flop_registry[packet](*args, out_val=result)
            self.flops += flops
            self.batched_flops += flops if packet.__name__ not in WITH_WEIGHTS else 0
        elif packet.__name__ == "random_":
            self.drawn += times * args[0].numel()
        elif packet.__name__ not in VIEWS:
            read_bytes = sum(_bytes(t) for t in tree_iter(args) if isinstance(t, Tensor))
            self.moved_bytes += times * (read_bytes + made_bytes)
        else:
            return
        self.operations += times


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
