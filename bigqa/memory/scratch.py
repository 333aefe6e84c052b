"""What CUDA operations hold beside their results, which tensors without data do not show. In: operations. Out: bytes.

Some of it is a line in the micro-batch and known in the trace; torch's reductions ask the card for its multiprocessors
and step from one size to the next, so they are worked out later, for a micro-batch and a card, from the shape that
they reduce. Each rule follows the host code of torch that it names.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigqa.engine.attention.kernels import runs_flash
from bigqa.memory import sorting
from bigqa.memory.cards import Card

MIB = 2**20
WORKSPACE_BYTES = 8_519_680
"""cuBLAS' workspace per handle and stream. Source: torch, `getChosenWorkspaceSize` (4096 KiB x 2 + 16 KiB x 8)."""
WORKSPACE_HOPPER_BYTES = 32 * MIB
CHUNK = 65536
"""Elements of a block of torch's multi-tensor kernels (`MultiTensorApply.cuh`, `kChunkSize`)."""
DRAWN = 2
"""Numbers that flash attention keeps of the draws of its dropout."""
TURN_COLUMNS, TURN_LOCK_BYTES = 64, 16
"""Of what blocks of queries add to by turns: fp32 values, 64 of a head, and a lock and a counter."""


@dataclass(frozen=True)
class Freed:
    """What an operation allocated as its so many-th is freed before the operation ends."""

    number: int


@dataclass(frozen=True)
class Moved:
    """What an operation allocated as its so many-th takes the place of its first argument, which is let go of."""

    number: int


@dataclass(frozen=True)
class Scratch:
    """An allocation whose size is a rule's."""

    rule: str
    shape: tuple[int, ...] = ()
    """Each number a line in the micro-batch."""

    def size(self, card: Card, shape: tuple[int, ...] | None = None) -> int:
        """Return its bytes; none: there is no such allocation."""
        return RULES[self.rule](card, *(self.shape if shape is None else shape))


def reduction_bytes(card: Card, outputs: int, inputs: int) -> int:
    """Return the buffer of a sum over rows, fp32 inside, that blocks share out among them; none: each has its own.

    Source: torch, `Reduce.cuh`, `ReduceConfig::global_memory_size`.
    """
    blocks, _, lanes = _shared_out(card, outputs, inputs)
    return 4 * outputs * blocks * lanes if blocks > 1 else 0


def semaphore_bytes(card: Card, outputs: int, inputs: int) -> int:
    """Return what tells the blocks of such a sum which of them is the last (`ReduceConfig::semaphore_size`)."""
    blocks, grid, _ = _shared_out(card, outputs, inputs)
    return 4 * grid if blocks > 1 else 0


def _shared_out(card: Card, outputs: int, inputs: int) -> tuple[int, int, int]:
    """Return blocks for each output, blocks beside each other, and outputs of a block.

    Source: torch, `Reduce.cuh`, `setReduceConfig`, where what is reduced is not what lies together in memory.
    """
    vector = next(size for size in (4, 2, 1) if outputs % size == 0)
    most = 512 // vector
    width = min(_power(outputs // vector, most), 32)
    height = min(_power(inputs, most), most // width)
    width = min(_power(outputs // vector, most), most // height)
    step_input, step_output = 1, width
    values = inputs
    splits = values >= min(height * 16, 256)
    if splits:
        step_input *= height
    else:
        step_output *= height
    values = -(-inputs // step_input)
    grid = -(-(outputs // vector) // step_output)
    target = card.multiprocessors * (card.threads // (width * height))
    if not splits or values < 256 or grid > target:
        return 1, grid, width * vector
    return max(min(-(-target // grid), -(-values // 16)), -(-values // 256)), grid, width * vector


def _power(number: int, most: int) -> int:
    """Return the largest power of two that is no more than the number, or the most."""
    return 1 << max(0, number.bit_length() - 1) if number < most else most


def workspace_bytes(card: Card) -> int:
    """Return cuBLAS' workspace of one thread."""
    return WORKSPACE_HOPPER_BYTES if card.capability >= (9, 0) else WORKSPACE_BYTES


def flash_queries_bytes(card: Card, size: int, groups: int, head: int, drops: int) -> int:
    """Return the queries' gradient in fp32; of `--deterministic`, as often as the groups fit into the multiprocessors.

    Source: torch, `flash_api.cpp`, `mha_varlen_bwd`: `dq_accum`, `nsplits`. `groups`: windows times heads.
    """
    if not runs_flash(card.capability, head, drops=bool(drops)):
        return 0
    return size * -(-card.multiprocessors // groups) if torch.are_deterministic_algorithms_enabled() else size


def flash_bytes(card: Card, size: int, head: int, drops: int) -> int:
    """Return what flash attention takes, where a card has it for heads of a size."""
    return size if runs_flash(card.capability, head, drops=bool(drops)) else 0


def efficient_bytes(card: Card, size: int, always: int, head: int, drops: int) -> int:
    """Return what the memory-efficient kernel takes, where there is no flash attention or `always`."""
    return size if always or not runs_flash(card.capability, head, drops=bool(drops)) else 0


RULES: dict[str, Callable[..., int]] = {
    **sorting.RULES,
    "reduction": reduction_bytes,
    "semaphores": semaphore_bytes,
    "workspace": workspace_bytes,
    "flash": flash_bytes,
    "flash queries": flash_queries_bytes,
    "efficient": efficient_bytes,
    "bytes": lambda card, size: size,
}
Steps = Sequence[Scratch | Freed | Moved]
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_addmm_activation"}


def beside(func: Any, args: tuple[Any, ...], result: Any) -> Steps:
    """Return what an operation holds while it runs."""
    rule = _OF.get(func)
    return [] if rule is None else rule(args, result)


def ahead(func: Any, args: tuple[Any, ...]) -> Steps:
    """Return what an operation holds already when it makes its results; the first of its allocations."""
    rule = _AHEAD.get(func)
    return [] if rule is None else rule(args)


def _of_sum(args: tuple[Any, ...], result: Any) -> Steps:
    reduced, dims = args[0], args[1]
    inner = reduced.ndim - 1
    if not dims or not reduced.is_contiguous() or inner in (dim % reduced.ndim for dim in dims):
        return []
    rest = result.numel()
    shape = (rest, reduced.numel() // rest)
    return [Scratch("reduction", shape), Scratch("semaphores", shape)]


def _of_packed_backward(args: tuple[Any, ...], result: Any) -> Steps:
    """Return what flash attention's backward pass holds, and what the memory-efficient kernel's where a card has that.

    Sources: torch, `flash_api.cpp`, `mha_varlen_bwd`: sums of scores, and the gradient of the queries in fp32.
    `attention_backward.cu`, `_efficient_attention_backward`: sums of each row, in fp32 of products no larger than what
    comes next, and what blocks of queries add to by turns (`mem_eff_attention/kernel_backward.h`, `GradQTempStorage`).
    """
    query, ends, longest = args[1], args[6], args[8]
    tokens, heads, size = query.shape
    windows, low, of = ends.shape[0] - 1, query.dtype != torch.float32, (size, int(args[10] > 0))
    sums = Scratch("efficient", (4 * heads * tokens, 1, *of))
    turns = _turn_bytes(query.dtype, heads * windows, longest, size)
    if not low:
        return [sums, sums, Scratch("efficient", (turns, 1, *of))]
    rows = tokens + 128 * windows
    rounded = -(-size // 32) * 32 if size <= 128 else -(-size // 64) * 64
    held = [
        Scratch("flash", (4 * heads * rows, *of)),
        Scratch("flash queries", (4 * heads * rows * rounded, heads * windows, *of)),
    ]
    summed = Scratch("efficient", (4 * heads * tokens, 0, *of))
    return [*held, summed, Scratch("efficient", (turns, 0, *of))]


def _of_padded_backward(args: tuple[Any, ...], result: Any) -> Steps:
    """As of packed windows, for the memory-efficient kernel alone."""
    windows, heads, length, size = args[1].shape
    sums = Scratch("bytes", (4 * windows * heads * length,))
    turns = Scratch("bytes", (_turn_bytes(args[1].dtype, heads * windows, length, size),))
    return [sums, turns] if args[1].dtype != torch.float32 else [sums, sums, turns]


def _turn_bytes(dtype: torch.dtype, parts: int, longest: int, size: int) -> int:
    """Return what blocks of queries add the gradient of the queries to, in each head of each window.

    Blocks are of 128 queries in low precision where heads are larger than 64, else of 64.
    """
    rows = 128 if dtype != torch.float32 and size > 64 else 64
    blocks = parts * -(-longest // rows) * -(-size // TURN_COLUMNS)
    return blocks * (4 * rows * TURN_COLUMNS + TURN_LOCK_BYTES)


def of_some_cards(func: Any, args: tuple[Any, ...], made: Tensor) -> Scratch | None:
    """Return the rule of a result that only some cards make: the draws of flash attention, elsewhere the host's."""
    if func is not torch.ops.aten._flash_attention_forward.default or made.numel() > DRAWN:
        return None
    return Scratch("flash", (made.nbytes, args[0].shape[-1], int(args[7] > 0)))


def _ahead_of_packed_backward(args: tuple[Any, ...]) -> Steps:
    """Return the gradient as the memory-efficient kernel has it, a batch of one, in place of its own.

    Source: torch, `FunctionsManual.cpp`, `select_backward`: what `engine.attention` takes the row out with.
    """
    always = int(args[1].dtype == torch.float32)
    return [Scratch("efficient", (args[0].nbytes, always, args[1].shape[-1], int(args[10] > 0))), Moved(0)]


def _sorted_for_embedding(args: tuple[Any, ...]) -> Steps:
    """Return the indices and their places, sorted, and the places as they were."""
    indices, rows = args[1].numel(), args[2]
    each = Scratch("indices", (indices,))
    return [each, each, each, Scratch("sort of embedding", (rows, indices)), Freed(3), Freed(2)]


def _of_embedding_backward(args: tuple[Any, ...], result: Any) -> Steps:
    """Return where equal indices begin, the keys beside them, and how each is split into parts that are added up."""
    (rows, size), indices = result.shape, args[1].numel()
    each, count = Scratch("indices", (indices,)), Scratch("count", (indices,))
    segments, is_low = Scratch("segments", (rows, indices)), int(result.element_size() < 4)
    return [
        each, count, each, Freed(6), segments, segments, count, Scratch("parts", (rows, indices)),
        Scratch("sums", (rows, size, indices)), Scratch("totals", (rows, size, is_low, indices)),
    ]  # fmt: skip


def _of_index_put(args: tuple[Any, ...], result: Any) -> Steps:
    """Return the places that are added to: wrapped, times their strides, summed, and sorted."""
    target, given, values, adds = (*args, False)[:4]
    indices = [one for one in given if one is not None]
    if not (adds or torch.are_deterministic_algorithms_enabled()) or any(one.dtype == torch.bool for one in indices):
        return []
    count = torch.broadcast_shapes(*(one.shape for one in indices)).numel()
    indexed = math.prod(target.shape[place] for place, one in enumerate(given) if one is not None)
    each = Scratch("bytes", (sorting.INDEX_BYTES * count,))
    steps: list[Scratch | Freed | Moved] = []
    for number in range(len(indices)):
        steps += [each, each, Freed(2 * number), *([Freed(2 * number + 1)] if number else [])]
    wanted = count * target.numel() // max(1, indexed) * values.element_size()
    held = 2 * len(indices)
    if values.nbytes < wanted or not values.is_contiguous():
        steps, held = [*steps, Scratch("bytes", (wanted,))], held + 1
    return [*steps, each, each, each, Scratch("sort", (count, indexed - 1)), Freed(held + 3), Freed(held + 2)]


def _of_packed(args: tuple[Any, ...], result: Any) -> Steps:
    return [] if args[0].dtype == torch.float32 else [Scratch("flash", (1, args[0].shape[-1], int(args[7] > 0)))]


def _of_norms(args: tuple[Any, ...]) -> Steps:
    """Source: torch, `ForeachReduceOp.cu`: a number for each block of every tensor."""
    tensors: list[Tensor] = args[0]
    most = max(-(-one.numel() // CHUNK) for one in tensors)
    return [Scratch("bytes", (4 * len(tensors) * most,))]


def _of_softmax_backward(args: tuple[Any, ...], result: Any) -> Steps:
    """Source: torch, `SoftMax.cu`, `softmax_backward_cuda_out`: the product of gradient and output."""
    return [Scratch("bytes", (args[0].nbytes,))]


_AHEAD: dict[Any, Callable[[tuple[Any, ...]], Steps]] = {
    torch.ops.aten._foreach_norm.Scalar: _of_norms,
    torch.ops.aten.embedding_dense_backward.default: _sorted_for_embedding,
    torch.ops.aten._flash_attention_backward.default: _ahead_of_packed_backward,
}
_OF: dict[Any, Callable[[tuple[Any, ...], Any], Steps]] = {
    torch.ops.aten.sum.dim_IntList: _of_sum,
    torch.ops.aten._flash_attention_backward.default: _of_packed_backward,
    torch.ops.aten._flash_attention_forward.default: _of_packed,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward.default: _of_padded_backward,
    torch.ops.aten.embedding_dense_backward.default: _of_embedding_backward,
    torch.ops.aten.index_put_.default: _of_index_put,
    torch.ops.aten._softmax_backward_data.default: _of_softmax_backward,
}
