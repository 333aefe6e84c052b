"""Tensors of which every process has a part, put together in host memory. In: this process's part. Out: the whole.

DeepSpeed's own way makes a whole fp32 tensor on the device, of embeddings as much as an eighth of a GiB, where training
may have left no room. Here a little at a time goes over the device, and nothing where there is one process.
"""

import torch
from torch import Tensor

AT_ONCE = 2**20
"""Elements: 4 MiB of the device."""


def whole_on_first(part: Tensor | None, start: int, numel: int, device: torch.device) -> Tensor | None:
    """Return a flat tensor of `numel` fp32 elements on the first process, none on the others; all must call.

    Args:
        part: this process's elements, flat and anywhere; none where it has none.
        start: the place of its first element in the whole.
        device: where processes exchange tensors.
    """
    part = torch.empty(0) if part is None else part.detach()
    if torch.distributed.get_world_size() == 1:
        return part.to("cpu", copy=True)
    is_first = torch.distributed.get_rank() == 0
    whole = torch.empty(numel) if is_first else None
    for begin in range(0, numel, AT_ONCE):
        end = min(begin + AT_ONCE, numel)
        piece = torch.zeros(end - begin, device=device)
        low, high = max(begin, start), min(end, start + part.numel())
        if low < high:
            piece[low - begin : high - begin].copy_(part[low - start : high - start])
        # As integers: nothing is added to a number but zeros, and what is negative zero stays so.
        torch.distributed.reduce(piece.view(torch.int32), dst=0)
        if whole is not None:
            whole[begin:end].copy_(piece)
    return whole
