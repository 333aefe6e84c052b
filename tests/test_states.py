"""What is modelled by hand, against the ZeRO paper, torch's sources and the allocator's model: bytes, one by one."""

from types import SimpleNamespace
from typing import Any

import pytest

from bigqa.engine.zero import LEAST_IN_A_BUCKET, buckets_of
from bigqa.memory import host, scratch
from bigqa.memory.cards import Card
from bigqa.memory.deepspeed import states, with_states
from bigqa.memory.depth import period_of
from bigqa.memory.events import CATEGORIES, Event, Stream, find_peak, live_sizes
from bigqa.memory.scaling import Footprint, NoLineError, Scaling
from bigqa.memory.timeline import timeline_of
from bigqa.memory.whole import whole_footprint
from bigqa.strategy import Strategy

P = 340_000_000
LAYER = 31_000_000
BUCKETS = buckets_of(P)
MIB = 2**20


def sharded(stage: int, **axes: Any) -> Strategy:
    return Strategy(precision="bf16", device="cuda", zero_stage=stage, **axes)


@pytest.mark.parametrize("world", [1, 4, 8])
def test_states_are_those_of_the_paper(world: int) -> None:
    # arXiv:1910.02054, figure 1, with K = 12: 2P + 2P + 12P/N, 2P + 2P/N + 12P/N, (2P + 2P + 12P)/N.
    one, two, three = (states(sharded(stage), P, LAYER, world) for stage in (1, 2, 3))
    share = -(-P // world)
    assert (one.weights_bytes, one.gradients_bytes, one.optimizer_bytes) == (2 * P, 2 * P, 12 * share)
    assert (two.weights_bytes, two.gradients_bytes, two.optimizer_bytes) == (2 * P, 2 * share, 12 * share)
    gathered = max(LAYER, BUCKETS.live)
    assert (three.weights_bytes, three.gradients_bytes) == (2 * (share + gathered), 2 * share)
    assert three.optimizer_bytes == 12 * share
    assert (one.buffers_bytes, three.buffers_bytes) == (6 * BUCKETS.reduced, 4 * BUCKETS.reduced)
    assert one.pinned_bytes == one.disk_bytes == 0


def test_a_large_layer_is_gathered_whole_and_a_bucket_is_there_for_the_smallest_model() -> None:
    assert states(sharded(3), 10 * P, 2 * P, 4).weights_bytes == 2 * (10 * P // 4 + 2 * P)
    small = states(sharded(3), 1000, 100, 4)
    assert small.weights_bytes == 2 * (250 + 1000) and small.buffers_bytes == 4 * LEAST_IN_A_BUCKET


def test_what_is_offloaded_is_on_the_host_or_the_disk() -> None:
    share = P // 4
    cpu = states(sharded(2, offload_optimizer="cpu"), P, LAYER, 4)
    # Masters, both moments and fp32 gradients: 16 bytes.
    assert (cpu.optimizer_bytes, cpu.pinned_bytes, cpu.disk_bytes) == (0, 16 * share, 0)
    # As counted in a run on a CPU: the weights' share once more, and the largest gradient twice.
    assert cpu.gradients_bytes == 2 * share + 2 * 2 * LAYER
    nvme = states(sharded(3, offload_optimizer="nvme", offload_parameters="nvme"), P, LAYER, 4)
    assert nvme.disk_bytes == 16 * share + 2 * share
    assert nvme.pinned_bytes == 16 * BUCKETS.reduced + 10 * BUCKETS.reduced
    assert nvme.weights_bytes == 2 * max(LAYER, BUCKETS.live)
    both = states(sharded(3, offload_optimizer="cpu", offload_parameters="cpu"), P, LAYER, 4)
    assert both.pinned_bytes == 16 * share + 2 * share and both.disk_bytes == 0


def test_states_take_the_place_of_those_that_were_traced() -> None:
    categories = dict(zip(CATEGORIES, (10, 20, 30, 40, 50), strict=True))
    found = Footprint(
        allocated_bytes=150, reserved_bytes=200, phase="optimizer", by_category=categories, largest=(),
        flops=1, moved_bytes=2, operations=3, step_bytes=4,
    )  # fmt: skip
    kept = states(sharded(2), 1000, 100, 4)
    changed = with_states(found, kept)
    assert changed.by_category == {
        "weights": 2000, "gradients": 500, "optimizer": 3000, "activations": 40,
        "temporaries": 50 + 6 * LEAST_IN_A_BUCKET,
    }  # fmt: skip
    assert changed.allocated_bytes == sum(changed.by_category.values())
    assert changed.reserved_bytes - changed.allocated_bytes == 50
    assert (changed.flops, changed.phase) == (1, "optimizer")


def test_weights_pass_through_the_host_twice_where_there_are_masters() -> None:
    for axes, each in (
        ({"precision": "fp32"}, 4), ({"precision": "bf16"}, 8), ({"precision": "fp16"}, 8),
        ({"precision": "bf16-sr"}, 4),
        ({"precision": "bf16", "adapters": "lora"}, 4), ({"precision": "bf16", "zero_stage": 2}, 8),
    ):  # fmt: skip
        assert host.loading_bytes(Strategy(device="cuda", **axes), 1000) == each * 1000  # type: ignore[arg-type]


def test_bitsandbytes_is_loaded_where_it_is_used() -> None:
    def beyond(**axes: Any) -> int:
        return host.resident_bytes(7, Strategy(precision="fp32", device="cpu", **axes)) - host.CPU_BASELINE_BYTES

    assert 2 * 1024 * MIB <= host.CUDA_BASELINE_BYTES <= 4 * 1024 * MIB
    assert 50 * MIB <= host.BITSANDBYTES_BYTES < host.CPU_BASELINE_BYTES <= 1024 * MIB
    assert beyond() == 7
    assert beyond(optimizer="adamw8bit") == beyond(adapters="qlora") == 7 + host.BITSANDBYTES_BYTES


def test_constants_are_those_of_their_sources() -> None:
    # torch's defaults: ":4096:2:16:8" KiB, and 32 MiB on Hopper.
    assert scratch.workspace_bytes(Card((8, 6))) == (4096 * 2 + 16 * 8) * 1024
    assert scratch.workspace_bytes(Card((9, 0))) == 32 * MIB


@pytest.mark.parametrize(
    ("config", "period"),
    [
        ({}, 1),
        ({"layer_types": ["full"] * 6}, 1),
        ({"layer_types": ["full", "near"] * 3}, 2),
        ({"layer_types": ["full", "near", "near"] * 2}, 3),
        ({"global_attn_every_n_layers": 3}, 3),
    ],
)
def test_layers_repeat_after_their_period(config: dict[str, Any], period: int) -> None:
    assert period_of(SimpleNamespace(num_hidden_layers=6, **config)) == period


def stream() -> Stream:
    """Weights, then a forward pass that keeps one of two, then what is freed and made in the optimizer."""
    events = [
        Event(1, 1000, "model", "empty"), Event(9, 5000, "set-up", "empty"), Event(9, 0, "set-up", ""),
        Event(2, 300, "forward", "mm"), Event(3, 2000, "forward", "gelu"), Event(3, 0, "forward", ""),
        Event(4, 700, "backward", "mm"), Event(2, 0, "backward", ""), Event(5, 512, "optimizer", "mul"),
    ]  # fmt: skip
    categories: Any = {
        1: "weights", 2: "activations", 3: "temporaries", 4: "gradients", 5: "temporaries", 9: "temporaries",
    }  # fmt: skip
    return Stream(events=events, categories=categories, flops=7, operations=3, offloaded_bytes=11)


def test_a_whole_footprint_is_counted_by_hand() -> None:
    on_cpu = whole_footprint(stream(), made_on_host=False)
    assert (on_cpu.allocated_bytes, on_cpu.phase) == (1024 + 5120, "set-up")
    found = whole_footprint(stream(), made_on_host=True)  # what passed in host memory is not the GPU's
    # Weights, gradient and what the optimizer made, and the step's three figures beside them.
    assert (found.allocated_bytes, found.phase) == (1024 + 1024 + 512 + 3 * 512, "forward")
    assert found.by_category == {
        "weights": 1024, "gradients": 0, "optimizer": 0, "activations": 512, "temporaries": 2048,
    }  # fmt: skip
    assert found.largest == (("gelu", 2000), ("mm", 300)) and found.reserved_bytes == 2 * MIB
    assert (found.flops, found.operations, found.offloaded_bytes) == (7, 3, 11)


def test_the_timeline_begins_with_the_step_and_keeps_its_peak() -> None:
    found = timeline_of(stream())
    assert found.phases == ("forward",) * 3 + ("backward",) * 2 + ("optimizer",)
    assert found.totals == (1536, 3584, 1536, 2560, 2048, 2560)
    assert found.by_category["activations"] == (512, 512, 512, 512, 0, 0)
    few = timeline_of(stream(), 2)
    assert few.totals == (3584, 2560) and few.phases == ("forward", "backward")


def test_nothing_peaks_where_nothing_happens() -> None:
    peak = find_peak(Stream())
    assert (peak.total_bytes, peak.phase, peak.largest) == (0, "", ())
    assert set(peak.by_category.values()) == {0}


def fake_trace(layers: int, batch: int) -> Stream:
    """A step of a model whose sizes can be added up by hand: a layer keeps 2048 bytes for each window."""
    events: list[Event] = []
    categories: dict[int, Any] = {}

    def make(category: str, size: int, phase: str, operation: str, **options: Any) -> int:
        number = len(categories) + 1
        categories[number] = category
        events.append(Event(number, size, phase, operation, **options))
        return number

    def drop(number: int, phase: str) -> None:
        events.append(Event(number, 0, phase, ""))

    for _ in range(layers):
        make("weights", 4096, "model", "empty")
    passing = make("temporaries", 1 << 20, "set-up", "draw")
    drop(passing, "set-up")
    kept = []
    for layer in range(layers):
        kept.append(make("activations", 2048 * batch, "forward", "addmm", repeats=batch))
        drop(make("temporaries", 8192 * batch, "forward", "gelu" if layer else "embedding"), "forward")
    gradients = []
    for number in reversed(kept):
        passing = make("temporaries", 1024 * batch, "backward", "bmm")
        gradients.append(make("gradients", 4096, "backward", "mm"))
        drop(passing, "backward")
        drop(number, "backward")
    for number in gradients:
        drop(make("temporaries", 4096, "optimizer", "mul", of_update=True), "optimizer")
        drop(number, "optimizer")
    return Stream(
        events=events, categories=categories, flops=1000 * layers * batch, batched_flops=10 * layers * batch,
        drawn=7 * layers * batch, moved_bytes=3 * layers * batch, operations=5 * layers, step_bytes=11 * layers,
        offloaded_bytes=2 * layers * batch,
    )  # fmt: skip


@pytest.mark.parametrize("made_on_host", [False, True])
@pytest.mark.parametrize("traced", [(2, 3), (2, 4)])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_lines_through_small_traces_meet_the_whole_one(made_on_host: bool, traced: tuple[int, int], batch: int) -> None:
    whole = whole_footprint(fake_trace(12, batch), made_on_host=made_on_host)
    found = Scaling(fake_trace, 12, traced, made_on_host=made_on_host).at(batch)
    for name in (
        "allocated_bytes", "phase", "by_category", "flops", "batched_flops", "moved_bytes", "operations", "step_bytes",
        "offloaded_bytes",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(whole, name), name
    assert found.drawn == 7 * 12 * batch
    assert [size for _, size in found.largest] == sorted((size for _, size in found.largest), reverse=True)
    if found.phase == "forward":
        assert found.largest[0] == ("gelu", 8192 * batch)
    assert found.reserved_bytes >= found.allocated_bytes
    if made_on_host:  # what the allocator adds to a step of so few bytes is the rest of a segment
        assert found.allocated_bytes < found.reserved_bytes <= found.allocated_bytes + 2 * MIB
    lives = list(live_sizes(fake_trace(12, batch), 512))
    passes = [live for event, live in lives if event.phase in ("forward", "backward")]
    before = [live for event, live in lives if event.phase == "set-up"][-1]
    if batch > 1:  # the same moment is the highest at every depth
        assert found.swing_bytes == max(passes) - before


def test_what_comes_before_the_step_is_the_devices_own_unless_it_is_made_on_the_host() -> None:
    assert Scaling(fake_trace, 12).at(1).phase == "set-up"
    assert Scaling(fake_trace, 12, made_on_host=True).at(1).phase != "set-up"


def test_other_events_at_another_micro_batch_are_no_line() -> None:
    def trace(layers: int, batch: int) -> Stream:
        return fake_trace(layers + batch, batch)

    with pytest.raises(NoLineError):
        Scaling(trace, 12).at(4)


def test_blocks_that_the_kernel_gives_are_counted_in_huge_and_small_pages() -> None:
    def trace(layers: int, batch: int) -> Stream:
        made = fake_trace(layers, batch)
        size = (32 << 20) * batch + 4096
        for number, options in ((9001, {"repeats": batch}), (9002, {"of_update": True})):
            made.categories[number] = "temporaries"
            phase = "optimizer" if "of_update" in options else "backward"
            at = next(i for i, event in enumerate(made.events) if event.phase == phase)
            made.events[at:at] = [Event(number, size, phase, "mm", **options), Event(number, 0, phase, "")]
        return made

    found = Scaling(trace, 12).at(2)
    size = (64 << 20) + 4096
    huge = (size // (2 << 20) - 1) * (2 << 20)
    assert found.fresh == (2 * huge, 2 * (size - huge)) and found.step_fresh == (huge, size - huge)


def test_of_two_peaks_the_first_is_named() -> None:
    events = [Event(1, 512, "forward", "a"), Event(1, 0, "forward", ""), Event(2, 512, "backward", "b")]
    assert find_peak(Stream(events=events, categories={1: "temporaries", 2: "gradients"})).phase == "forward"
