"""DeepSpeed's events as they are replayed, against figures worked out by hand and DeepSpeed's own arithmetic."""

import pytest
import torch
from torch import nn
from zero_made import MILLION, layout

from bigqa.engine.zero import LEAST_IN_A_BUCKET, MOST_IN_A_BUCKET, Buckets, buckets_of
from bigqa.memory.allocator import MIB, CachingAllocator
from bigqa.memory.events import Stream
from bigqa.memory.host import pinned_block
from bigqa.memory.parallel import FIRST_BYTES, OTHER_BYTES, Averaging, averaging_of, buckets
from bigqa.memory.replay import peaks
from bigqa.memory.timeline import timeline_of
from bigqa.memory.zero.device import GATHERING, MAIN, REDUCING, Device
from bigqa.memory.zero.early import EarlyStages
from bigqa.memory.zero.layout import layout_of, partitions_of
from bigqa.strategy import Strategy


def test_buckets_fit_the_model() -> None:
    assert buckets_of(None) == Buckets(MOST_IN_A_BUCKET, MOST_IN_A_BUCKET // 2, 2 * MOST_IN_A_BUCKET)
    assert buckets_of(10**12).reduced == MOST_IN_A_BUCKET and buckets_of(1000).reduced == LEAST_IN_A_BUCKET
    large = buckets_of(340_000_000)
    assert 0.99 * 340_000_000 / 32 <= large.reduced <= 340_000_000 / 32 and large.reduced % 2 == 0


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_group_is_cut_as_the_flat_buffer_is(world_size: int) -> None:
    numels = {3: 1000, 4: 7, 5: 333, 9: 1, 10: 4096}
    found = partitions_of(numels, world_size)
    total = sum(numels.values())
    assert (total + found.padding) % (2 * world_size) == 0 and found.padding < 2 * world_size
    flat = torch.cat([torch.full((numel,), number) for number, numel in numels.items()])
    flat = torch.cat([flat, torch.full((found.padding,), -1)])
    for rank, part in enumerate(flat.chunk(world_size)):
        assert part.numel() == found.size
        held = {number: int((part == number).sum()) for number in numels}
        assert {number: one.size for number, one in found.of(rank).items()} == {n: c for n, c in held.items() if c}


def test_blocks_of_one_stream_are_not_anothers() -> None:
    allocator = CachingAllocator()
    allocator.allocate(1, 16 * MIB)
    allocator.free(1)
    allocator.allocate(2, 16 * MIB, stream=1)
    assert allocator.reserved_bytes == 32 * MIB
    allocator.allocate(3, 16 * MIB)
    assert allocator.reserved_bytes == 32 * MIB
    allocator.free(2)
    allocator.give_back()
    assert allocator.reserved_bytes == 16 * MIB


def test_the_peak_says_what_was_there() -> None:
    device = Device()
    weights = device.new(3 * MIB, "weights")
    device.passing(4 * MIB, REDUCING)
    device.phase = "backward"
    device.new(2 * MIB, "temporaries", "mm")
    device.new(5 * MIB, "gradients", stream=GATHERING)
    device.phase = "optimizer"
    device.free(weights)
    device.passing(MIB)
    found, passing = device.at_peak()
    assert (found["weights"], found["gradients"], found["temporaries"]) == (3 * MIB, 5 * MIB, 2 * MIB)
    assert passing == [("mm", 2 * MIB)] and device.peak_phase == "backward"
    assert device.new(0, "weights") == 0  # an empty tensor has no block


def test_the_last_step_finds_what_was_there() -> None:
    device, stage = early(2, 1)
    for _ in range(2):
        device.begin_step()
        device.phase = "forward"
        stage.begin(boundary=True)
        device.passing(MIB)
        stage.end_backward()
        device.phase = "optimizer"
        stage.step()
    found = timeline_of(device.last_step())
    assert set(found.phases) == {"forward", "optimizer"}
    # 8 Mi parameters: masters and Adam's moments, of 4 bytes each, are there from the step's first moment.
    assert found.by_category["weights"][0] == 16 * MIB
    assert found.by_category["optimizer"][0] == 3 * 32 * MIB + 512
    assert max(found.by_category["gradients"]) == (16 + 32) * MIB  # flat, and in fp32


def early(stage: int, world_size: int, *, offload: str = "none") -> tuple[Device, EarlyStages]:
    device = Device()
    strategy = Strategy.model_validate({"precision": "bf16", "zero_stage": stage, "offload_optimizer": offload})
    model = layout(4 * MILLION, 4 * MILLION)
    made = EarlyStages(device, model, strategy, world_size, Buckets(6 * MILLION, 0, 0), frozenset())
    made.start()
    return device, made


@pytest.mark.parametrize(("world_size", "held"), [(1, 16 + 32), (2, 16 + 16), (4, 16 + 8)])
def test_what_is_there_before_the_first_step(world_size: int, held: int) -> None:
    """8 Mi parameters: 2 bytes of weights, and this process's part of 4 bytes of masters."""
    device, _ = early(1, world_size)
    assert device.allocator.allocated_bytes == held * MIB
    device.empty_cache(forget=True)
    assert device.allocator.peak_allocated_bytes == held * MIB and device.peak_phase == "start"


def test_a_step_of_zero_2_by_hand() -> None:
    device, stage = early(2, 2)
    stage.begin(boundary=True)
    first = device.new(8 * MIB, "gradients")
    assert not stage.gradient(1, first)  # copied into the bucket
    assert device.allocator.allocated_bytes == (32 + 8 + 24) * MIB
    device.free(first)
    second = device.new(8 * MIB, "gradients")
    assert not stage.gradient(0, second)  # the bucket was full: the first is reduced, and is another process's
    device.free(second)
    assert device.allocator.allocated_bytes == (32 + 24) * MIB
    stage.end_backward()  # the second is this one's, and has moved to a buffer of its own
    assert device.allocator.allocated_bytes == (32 + 8) * MIB
    stage.step()
    assert device.allocator.allocated_bytes == (32 + 2 * 16) * MIB + 512  # Adam's moments and its counter
    # The fp32 gradient takes the place of the other before the moments are made.
    assert device.allocator.peak_allocated_bytes == (32 + 16 + 2 * 16) * MIB + 512


def test_zero_1_keeps_gradients_until_the_last_micro_batch() -> None:
    device, stage = early(1, 2)
    for boundary in (False, True):
        stage.begin(boundary=boundary)
        for number in (1, 0):
            block = device.new(8 * MIB, "gradients")
            if not stage.gradient(number, block):
                device.free(block)
        stage.end_backward()
        # Two buckets, and both gradients whole; then only the part that this process steps.
        assert device.allocator.allocated_bytes == (32 + (8 if boundary else 24 + 16)) * MIB


def test_what_is_offloaded_is_pinned() -> None:
    device, _ = early(2, 2, offload="cpu")
    part = 4 * MILLION
    pinned = [4 * part, 2 * part, 2 * 4 * MILLION, 4 * part]  # masters, weights back, one gradient, fp32 gradients
    assert device.pinned_bytes == sum(map(pinned_block, pinned))
    assert device.host_bytes == 8 * part
    assert device.allocator.allocated_bytes == (16 + 8) * MIB  # weights, and room for a gradient that comes back


def test_a_layout_has_modules_groups_and_the_order_of_moving() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    model.register_buffer("mask", torch.zeros(10))
    groups = [{"params": [model[0].weight]}, {"params": [model[0].bias, *model[1].parameters()]}]
    found = layout_of(model, groups, 4)
    assert found.numels == (6, 3, 3, 3) and found.groups == ((0,), (1, 2, 3))
    assert found.modules == ((), (0, 1), (2, 3)) and found.buffers == [40]
    assert found.placed == ((0, 0), (1, 0), (2, 0), (3, 0), (-1, 40))
    assert MAIN != REDUCING != GATHERING


def test_gradients_are_averaged_in_buckets_as_torch_makes_them() -> None:
    sizes = [300_000, 900_000, 30 * MIB, 5, 10 * MIB, 20 * MIB, 1000]
    tensors = [torch.empty(size, dtype=torch.uint8, device="meta") for size in sizes]
    indices, _ = torch.distributed._compute_bucket_assignment_by_size(tensors, [FIRST_BYTES, OTHER_BYTES])
    assert sorted(buckets(sizes)) == sorted(sum(sizes[one] for one in bucket) for bucket in indices)


def test_the_first_step_has_a_single_bucket_and_later_ones_several_beside_it_or_in_its_place() -> None:
    """By hand: 60 MiB of weights and gradients, of which nothing else is allocated."""
    sizes = [20 * MIB, 12 * MIB, 28 * MIB]
    found = averaging_of([300 * MIB, *sizes], sizes)
    assert found == Averaging(sent=(300 * MIB, 60 * MIB), first=60 * MIB, rebuilt=(28 * MIB, 32 * MIB))
    assert found.ends == (60 * MIB, 120 * MIB)
    small = Averaging(sent=(10 * MIB,) * 3, first=60 * MIB, rebuilt=found.rebuilt)
    figures = 3 * 512  # of a step, at its end; small blocks have a segment of 2 MiB to themselves
    # Two flat copies at once; then all is in the first's place.
    assert peaks(Stream(), [], small) == (60 * MIB + figures, 82 * MIB)
    assert peaks(Stream(), [], small, keeps_first=True) == (120 * MIB + figures, 142 * MIB)
    assert peaks(Stream(), [], small, keeps_sent=True) == (90 * MIB, 92 * MIB)  # all three, beside the first
