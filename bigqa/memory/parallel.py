"""What data-parallel training without DeepSpeed keeps beside a single process's. In: gradients. Out: bytes.

Source: torch, `reducer.cpp`: gradients are copied into buckets, which are averaged and copied back. They are there from
the start, whether gradients are or not. After the first step buckets are made anew. The old ones go when NCCL's
watchdog has seen that their sum is done, which it looks for every 100 ms: in a second step that comes sooner, they are
there besides, and are not counted here.
"""

from collections.abc import Iterable

from bigqa.memory.allocator import MIB, CachingAllocator

FIRST_BYTES, OTHER_BYTES = MIB, 25 * MIB
"""At which a bucket is full (`distributed.py`: `_DEFAULT_FIRST_BUCKET_BYTES`, `bucket_cap_mb`)."""


def buckets(gradients: Iterable[int]) -> list[int]:
    """Return the bytes of each bucket, for gradients in the order in which they come.

    Source: `compute_bucket_assignment_by_size`.
    """
    found, size, full = [], 0, FIRST_BYTES
    for gradient in gradients:
        size += gradient
        if size >= full:
            found.append(size)
            size, full = 0, OTHER_BYTES
    return [*found, size] if size else found


def taken(sizes: Iterable[int]) -> tuple[int, int]:
    """Return what blocks of these sizes take: allocated, reserved."""
    allocator = CachingAllocator()
    for number, size in enumerate(sizes):
        allocator.allocate(number, size)
    return allocator.allocated_bytes, allocator.reserved_bytes
