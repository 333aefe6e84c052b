"""DeepSpeed's events as they are replayed, against figures worked out by hand and DeepSpeed's own arithmetic."""

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig

from bigqa.engine.zero import LEAST_IN_A_BUCKET, MOST_IN_A_BUCKET, Buckets, buckets_of
from bigqa.memory.allocator import MIB, CachingAllocator
from bigqa.memory.events import Stream
from bigqa.memory.host import pinned_block
from bigqa.memory.parallel import FIRST_BYTES, OTHER_BYTES, Averaging, averaging_of, buckets
from bigqa.memory.replay import peaks
from bigqa.memory.timeline import timeline_of
from bigqa.memory.zero.device import GATHERING, MAIN, REDUCING, Device
from bigqa.memory.zero.early import EarlyStages
from bigqa.memory.zero.gathering import Gathering
from bigqa.memory.zero.layout import Layout, layout_of, partitions_of
from bigqa.memory.zero.marks import LinearOfShardedWeights, watch_modules
from bigqa.memory.zero.third import ShardedWeights, ThirdStage
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES, Strategy

MILLION = 2**20


def layout(*numels: int, modules: Sequence[Sequence[int]] = (), low: int = 2) -> Layout:
    numbers = tuple(range(len(numels)))
    return Layout(numels, low, (numbers,), tuple((one, 0) for one in numbers), tuple(map(tuple, modules)))


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


class Noted:
    """Weights that only say what is asked of them."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []

    def gather(self, numbers: Sequence[int]) -> None:
        self.said.append(("gather", tuple(numbers)))

    def wait(self, number: int) -> None:
        pass

    def release(self, number: int) -> None:
        self.said.append(("release", number))


def one_pass(gathering: Gathering, modules: Sequence[int]) -> None:
    gathering.begin_pass()
    for module in modules:
        gathering.fetch(module, forward=True)
        gathering.release_module(module, forward=True)
    for module in reversed(modules):
        gathering.fetch(module, forward=False)
        gathering.release_module(module, forward=False)
    gathering.end_pass()


def test_the_first_pass_fetches_what_it_needs_and_the_second_ahead() -> None:
    weights = Noted()
    model = layout(100, 100, 100, modules=[[0], [1], [2]])
    gathering = Gathering(weights, model, Buckets(reduced=0, prefetched=100, live=150), frozenset())
    one_pass(gathering, [0, 1, 2])
    need = [[("gather", (one,)), ("release", one)] for one in (0, 1, 2, 2, 1, 0)]
    assert weights.said == list(itertools.chain(*need))
    weights.said = []
    one_pass(gathering, [0, 1, 2])
    # One more is fetched as long as fewer than 150 elements are live. Only the last is used again before 150 others
    # have passed, and is kept for its backward pass.
    assert weights.said == [
        ("gather", (0,)), ("gather", (1,)), ("release", 0), ("gather", (2,)), ("release", 1), ("gather", (1,)),
        ("release", 2), ("gather", (0,)), ("release", 1), ("release", 0),
    ]  # fmt: skip


def test_persistent_weights_stay_from_the_second_pass_to_the_step() -> None:
    weights = Noted()
    gathering = Gathering(weights, layout(5, modules=[[0]]), Buckets(0, 0, 1), frozenset({0}))
    one_pass(gathering, [0])
    one_pass(gathering, [0])
    assert weights.said == [("gather", (0,)), ("release", 0)] * 2 + [("gather", (0,))]
    gathering.release_all()
    assert weights.said[-1] == ("release", 0)


def test_a_coalesced_gather_holds_a_buffer_and_copies() -> None:
    device = Device()
    weights = ShardedWeights(device, layout(MILLION, 3 * MILLION), 2, on_host=False)
    weights.gather([0, 1])
    assert device.allocator.allocated_bytes == 8 * MIB
    weights.wait(0)  # copies both out of the buffer, which stays until both are taken
    assert device.allocator.allocated_bytes == 16 * MIB
    weights.release(0)
    weights.wait(1)
    assert device.allocator.allocated_bytes == 6 * MIB
    weights.release(1)
    assert device.allocator.allocated_bytes == 0


def test_a_weight_gathered_alone_is_not_copied() -> None:
    device = Device()
    weights = ShardedWeights(device, layout(MILLION), 4, on_host=True)
    weights.gather([0])
    weights.wait(0)
    assert device.allocator.allocated_bytes == 2 * MIB
    assert device.allocator.peak_allocated_bytes == 2 * MIB + MIB // 2  # and this process's part, on its way


def test_what_is_sent_stays_until_it_is_waited_for() -> None:
    device = Device()
    weights = ShardedWeights(device, layout(MILLION), 4, on_host=True)
    weights.gather([0])
    assert device.allocator.allocated_bytes == 2 * MIB + MIB // 2
    weights.wait(0)
    assert device.allocator.allocated_bytes == 2 * MIB


def test_what_a_recomputation_holds_is_there_beside_the_weight_that_is_gathered_anew() -> None:
    device = Device()
    weights = ShardedWeights(device, layout(MILLION), 1, on_host=True)
    there = []
    for call in (weights.gather, weights.hold, weights.release, weights.gather, weights.hold, weights.let_go,
                 weights.let_go, weights.release):  # fmt: skip
        call([0] if call == weights.gather else 0)  # type: ignore[operator]
        there.append(device.allocator.allocated_bytes // MIB)
    # Detached once by the recomputation, and once more when autograd takes it: both are of the first block.
    assert there == [2, 2, 2, 4, 4, 4, 2, 0]
    weights.gather([0])
    weights.hold(0)
    weights.let_go(0)  # before it is released
    weights.release(0)
    assert device.allocator.allocated_bytes == 0


def test_a_recomputation_holds_each_weight_until_its_products_are_made() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    estimator = estimator_for(config)
    traced = estimator._trace_micro_batch(STRATEGIES["zero3-offload"], 1, 16)
    kinds = {kind: Counter(mark.number for mark in traced.marks if mark.kind == kind) for kind in ("hold", "let-go")}
    assert kinds["hold"] == kinds["let-go"] and sum(kinds["hold"].values()) > 2 * 2 * 7  # linear layers, detached twice
    events = traced.stream.events
    for number, numel in enumerate(traced.layout.numels):
        if numel != 64 * 32 or not kinds["hold"][number]:  # no layer's of the feed-forward part
            continue
        *_, hold = (mark for mark in traced.marks if mark.number == number and mark.kind == "hold")
        *_, end = (mark for mark in traced.marks if mark.number == number and mark.kind == "let-go")
        made = [event.operation for event in events[hold.before : end.before] if event.size_bytes]
        assert made.count("mm") == 2  # of the layer's input, and of its weight


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


def test_zero_3_reduces_what_does_not_fit_its_bucket_as_it_is() -> None:
    device = Device()
    strategy = Strategy(precision="bf16", zero_stage=3, offload_optimizer="cpu", offload_parameters="cpu")
    stage = ThirdStage(device, layout(8 * MILLION, MILLION), strategy, 2, Buckets(2 * MILLION, 0, 0), frozenset())
    stage.start()
    assert device.allocator.allocated_bytes == 4 * MIB  # the bucket alone
    stage.begin(boundary=True)
    small, large = (device.new(size * MIB, "gradients") for size in (2, 16))
    assert not stage.gradient(1, small)
    device.free(small)
    assert stage.gradient(0, large)
    assert device.allocator.allocated_bytes == (4 + 16) * MIB + 512  # and the norm of the first
    stage.end_backward()
    assert device.allocator.allocated_bytes == 4 * MIB + 2 * 512
    # The large one as it is, its part once more, and in fp64 for its norm; and the norm of the first.
    assert device.allocator.peak_allocated_bytes == (4 + 16 + 8 + 32) * MIB + 512


def test_the_linear_layer_of_zero_3_computes_what_torchs_does() -> None:
    torch.manual_seed(0)
    value, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 4), (5, 4), (5,)))
    found = []
    for function in (functional.linear, LinearOfShardedWeights.apply):
        given = [one.clone().requires_grad_() for one in (value, weight, bias)]
        result = function(*given)
        result.square().sum().backward()
        found.append([result.detach(), *(one.grad for one in given)])
    for plain, sharded in zip(*found, strict=True):
        torch.testing.assert_close(plain, sharded)


def test_a_module_called_with_keywords_has_no_end_of_its_backward_pass() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.second(input=self.first(value))
            return result

    said: list[tuple[str, int]] = []
    model = Outer()
    watch_modules(model, lambda kind, number: said.append((kind, number)))
    model(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert said == [
        ("forward", 0), ("forward", 1), ("forward-end", 1), ("forward", 2), ("forward-end", 2), ("forward-end", 0),
        ("backward", 0), ("backward", 2), ("backward", 1), ("backward-end", 1), ("backward-end", 0),
    ]  # fmt: skip


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
