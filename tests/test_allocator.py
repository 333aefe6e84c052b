"""The model of torch's caching allocator, by hand-worked sequences: rounding, pools, best fit, splitting, joining."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigqa.memory.allocator import MIB, CachingAllocator, OutOfMemory


def make(*sizes: int, limit: int | None = None) -> CachingAllocator:
    allocator = CachingAllocator(limit)
    for key, size in enumerate(sizes):
        allocator.allocate(key, size)
    return allocator


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest of the small
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # from here on a segment of its own
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_one_allocation(size: int, allocated: int, reserved: int) -> None:
    allocator = make(size)
    # A segment of its own is split only where more than 1 MiB is left: 12 MiB for 10 MiB + 512 leaves more than that.
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)


def test_a_rest_of_at_most_one_mebibyte_stays_with_a_large_block() -> None:
    assert make(11 * MIB + 512).allocated_bytes == 12 * MIB


def test_small_blocks_share_a_segment() -> None:
    allocator = make(*[MIB // 2] * 4)
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(9, 512)
    assert allocator.reserved_bytes == 4 * MIB


def test_the_smallest_free_block_that_fits_is_taken() -> None:
    allocator = make(40 * MIB, 16 * MIB, 30 * MIB)
    for key in range(3):
        allocator.free(key)
    allocator.allocate(5, 15 * MIB + 512)  # fits all three; 16 MiB is the smallest, and its rest is too small to split
    assert allocator.allocated_bytes == 16 * MIB and allocator.reserved_bytes == 86 * MIB


def test_what_was_freed_is_used_again_and_split() -> None:
    allocator = make(40 * MIB)
    allocator.free(0)
    allocator.allocate(1, 12 * MIB)
    allocator.allocate(2, 20 * MIB)
    assert allocator.allocated_bytes == 32 * MIB and allocator.reserved_bytes == 40 * MIB


def test_free_neighbours_join() -> None:
    allocator = make(40 * MIB)
    allocator.free(0)
    for key in (1, 2, 3):
        allocator.allocate(key, 12 * MIB)
    for key in (1, 3, 2):
        allocator.free(key)
    allocator.allocate(4, 40 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_pieces_kept_apart_do_not_serve_a_large_request() -> None:
    allocator = make(40 * MIB)
    allocator.free(0)
    for key in (1, 2, 3):
        allocator.allocate(key, 12 * MIB)
    allocator.free(1)
    allocator.free(3)
    allocator.allocate(4, 24 * MIB)  # 28 MiB are free, in two pieces
    assert allocator.reserved_bytes == 64 * MIB


def test_at_the_limit_free_segments_go_back_and_then_it_is_out() -> None:
    allocator = make(40 * MIB, limit=60 * MIB)
    allocator.free(0)
    allocator.allocate(1, 50 * MIB)
    assert allocator.reserved_bytes == 50 * MIB and allocator.peak_reserved_bytes == 50 * MIB
    with pytest.raises(OutOfMemory):
        allocator.allocate(2, 12 * MIB)


@given(st.lists(st.tuples(st.integers(1, 60 * MIB), st.integers(0, 30)), max_size=60))
def test_reserved_covers_allocated_and_everything_can_go_back(requests: list[tuple[int, int]]) -> None:
    allocator = CachingAllocator()
    live: list[int] = []
    for key, (size, dropped) in enumerate(requests):
        allocator.allocate(key, size)
        live.append(key)
        assert allocator.reserved_bytes >= allocator.allocated_bytes >= size
        if dropped < len(live):
            allocator.free(live.pop(dropped))
    for key in live:
        allocator.free(key)
    assert allocator.allocated_bytes == 0
    allocator.give_back()
    assert allocator.reserved_bytes == 0  # so free neighbours always joined into whole segments
