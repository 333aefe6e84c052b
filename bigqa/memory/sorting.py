"""What operations hold that sort indices: the backward passes of embeddings and of indexing. In: sizes. Out: bytes.

Sources: torch, `Embedding.cu` (`embedding_dense_backward_cuda`), `EmbeddingBackwardKernel.cu`, `Indexing.cu`
(`index_put_with_sort_kernel`); CUB, `dispatch_radix_sort.cuh` (`InvokeOnesweep`) and `tuning_radix_sort.cuh`. What CUB
takes to find the first of equal keys and to add up is left out: one to three KiB, given back at once.
"""

from collections.abc import Callable

import torch

from bigqa.memory.cards import Card

INDEX_BYTES = 8
FEW_INDICES = 3072
"""That many or fewer are not sorted in the backward pass of an embedding."""
ROWS_PER_THREAD, WARP, MOST_THREADS = 10, 32, 1024
BLOCKS_EACH = 4
"""Fewer blocks for each multiprocessor than these: parts are added up by atomics (`MAX_ATOMIC_ACCUM_BLOCKS_PER_SM`)."""
DIGIT_BITS, ALIGNED = 8, 256
AT_ONCE = 2304
"""Pairs that one block sorts, without memory of the device."""
TILES = (((9, 0), 4608), ((8, 0), 3840), ((0, 0), 2816))
"""From which capability on: pairs of a block in one sweep, keys and values of 8 bytes each."""


def sort_bytes(card: Card, indices: int, rows: int) -> int:
    """Return what sorting so many indices, each with its place, takes; `rows`: keys are less, or equal."""
    if indices <= AT_ONCE:
        return 1
    passes, digits = -(-max(1, rows.bit_length()) // DIGIT_BITS), 2**DIGIT_BITS
    tile = next(tile for capability, tile in TILES if card.capability >= capability)
    pairs = 2 * [INDEX_BYTES * indices] if passes > 1 else []
    parts = [passes * digits * 8, -(-indices // tile) * digits * 4, *pairs, passes * 4]
    return ALIGNED - 1 + sum(-(-part // ALIGNED) * ALIGNED for part in parts)


def of_embedding(rule: Callable[..., int]) -> Callable[..., int]:
    """Return a rule of an embedding's backward pass, which sorts only many indices: they come last."""
    return lambda card, *shape: rule(card, *shape) if shape[-1] > FEW_INDICES else 0


def parts_of(rows: int, indices: int) -> int:
    """Return into how many parts equal indices are split at most."""
    return indices // ROWS_PER_THREAD + min(rows, indices)


def adds_at_once(card: Card, rows: int, size: int, indices: int) -> bool:
    """Whether parts are added to their rows by atomics, since rows are too few for the card's multiprocessors."""
    warped = -(-size // WARP) * WARP
    blocks = -(-min(rows, indices) * warped // min(warped, MOST_THREADS))
    is_few = blocks < BLOCKS_EACH * card.multiprocessors and parts_of(rows, indices) > 4 * blocks
    return is_few and not torch.are_deterministic_algorithms_enabled()


def sums_bytes(card: Card, rows: int, size: int, indices: int) -> int:
    """Return the sums of all parts, in fp32; where those are added at once, the row of each part."""
    each = INDEX_BYTES if adds_at_once(card, rows, size, indices) else 4 * size
    return each * parts_of(rows, indices)


def totals_bytes(card: Card, rows: int, size: int, is_low: int, indices: int) -> int:
    """Return what parts of low precision are added to at once, in fp32."""
    return 4 * rows * size if is_low and adds_at_once(card, rows, size, indices) else 0


RULES: dict[str, Callable[..., int]] = {
    "sort": sort_bytes,
    "sort of embedding": of_embedding(lambda card, rows, indices: sort_bytes(card, indices, rows)),
    "indices": of_embedding(lambda card, indices: INDEX_BYTES * indices),
    "count": of_embedding(lambda card, indices: INDEX_BYTES),
    "segments": of_embedding(lambda card, rows, indices: INDEX_BYTES * min(rows, indices)),
    "parts": of_embedding(lambda card, rows, indices: INDEX_BYTES * parts_of(rows, indices)),
    "sums": of_embedding(sums_bytes),
    "totals": of_embedding(totals_bytes),
}
