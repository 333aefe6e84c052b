"""ZeRO-3's weights as they are gathered, held and let go of, against figures worked out by hand and torch's linear."""

import itertools
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig
from zero_made import MILLION, layout

from bigqa.engine.zero import Buckets
from bigqa.memory.allocator import MIB
from bigqa.memory.zero.device import Device
from bigqa.memory.zero.gathering import Gathering
from bigqa.memory.zero.marks import LinearOfShardedWeights, watch_modules
from bigqa.memory.zero.third import ShardedWeights, ThirdStage
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES, Strategy


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
