"""Predicted memory: against sums worked by hand, against whole traces, and by properties that must hold."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from bigqa.engine import offload
from bigqa.memory.deepspeed import states
from bigqa.memory.depth import with_layers
from bigqa.memory.estimate import Estimator
from bigqa.memory.events import CATEGORIES, Event, Stream, find_peak
from bigqa.memory.trace import trace_step
from bigqa.memory.whole import whole_footprint
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES, Strategy
from bigqa.tasks.qa.task import QuestionAnswering
from bigqa.units import MIB

BERT = {
    "model_type": "bert",
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
    "vocab_size": 1000,
}


def config_of(**changes: Any) -> Any:
    return AutoConfig.for_model(**(BERT | changes))


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    return estimator_for(config_of())


def whole_trace(estimator: Estimator, strategy: Strategy, batch: int, *, accumulating: bool) -> Any:
    return trace_step(
        lambda: estimator.make_model(estimator.config),
        estimator.task,
        lambda: QuestionAnswering(0, True).example(batch, 128, packed=True),
        strategy,
        accumulating=accumulating,
    )


GPU_ROWS = ["plain", "plain-fp32", "recompute", "selective", "8bit", "lora", "stochastic"]
CPU_ROWS = ["cpu", "cpu-recompute", "cpu-8bit-recompute", "cpu-least"]


@pytest.mark.parametrize("name", GPU_ROWS + CPU_ROWS)
@pytest.mark.parametrize("batch", [1, 9])
def test_a_few_layers_and_windows_stand_for_many(estimator: Estimator, name: str, batch: int) -> None:
    strategy = STRATEGIES[name]
    scaled = estimator.footprint(strategy, batch, 128, accumulating=True)
    stream = whole_trace(estimator, strategy, batch, accumulating=True)
    whole = whole_footprint(stream, made_on_host=strategy.device == "cuda")
    # What a block holds that is too little to be split off, up to 1 MiB, is no line in the depth.
    unsplit = MIB if strategy.device == "cuda" else 0
    assert scaled.allocated_bytes == pytest.approx(whole.allocated_bytes, rel=0.005, abs=unsplit)
    for what in ("flops", "batched_flops", "moved_bytes", "step_bytes", "operations", "drawn", "fresh", "step_fresh"):
        assert getattr(scaled, what) == getattr(whole, what), what  # what speed is told from
    if strategy.device == "cuda":  # nothing is reserved on a CPU
        # Short of it by two small segments at most: where they decide, the planner traces the whole model.
        assert whole.reserved_bytes <= scaled.reserved_bytes + 4 * 2**20


def test_the_peak_may_lie_between_two_rounds_through_the_layers() -> None:
    """Adapters come to every layer, then all weights are rounded: the embeddings, the largest of them, first."""
    found = estimator_for(config_of(vocab_size=60_000))
    strategy = STRATEGIES["lora"].model_copy(update={"device": "cpu", "precision": "bf16", "recompute": "full"})
    scaled = found.footprint(strategy, 1, 128, accumulating=False)
    whole = whole_footprint(whole_trace(found, strategy, 1, accumulating=False), made_on_host=False)
    assert scaled.phase == whole.phase == "set-up"
    assert scaled.allocated_bytes == pytest.approx(whole.allocated_bytes, rel=0.005)


def test_what_no_line_can_be_drawn_through_is_traced_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of 2 windows of 128 are 32 KiB and stay; of 3 they are 48 KiB and go."""
    monkeypatch.setattr(offload, "MIN_BYTES", 40 * 2**10)
    found = estimator_for(config_of())
    footprint = found.footprint(STRATEGIES["offload-activations"], 9, 128, accumulating=False)
    # Of each of six layers at the least the inputs of its two blocks, 9 x 128 x 64 in two bytes.
    assert footprint.offloaded_bytes > 6 * 2 * 9 * 128 * 64 * 2
    stream = whole_trace(found, STRATEGIES["offload-activations"], 9, accumulating=False)
    assert footprint.allocated_bytes == whole_footprint(stream, made_on_host=True).allocated_bytes


def test_states_are_those_of_the_textbook(estimator: Estimator) -> None:
    """fp32: 4 bytes each of weights, gradients and two moments. bf16: 2 + 2 of weights and gradients, 4 of masters."""
    count = sum(p.numel() for p in estimator.make_model(estimator.config).parameters())
    for name, states_bytes in {"plain-fp32": 8, "plain": 12}.items():
        found = estimator.footprint(STRATEGIES[name], 4, 128, accumulating=True).by_category
        weights_bytes = 4 if name == "plain-fp32" else 2
        assert found["weights"] == pytest.approx(weights_bytes * count, rel=0.05)  # rounded up to 512 bytes each
        assert found["optimizer"] == pytest.approx(states_bytes * count, rel=0.1)
        assert found["gradients"] == pytest.approx(weights_bytes * count, rel=0.05)


def test_a_peak_is_found_by_hand() -> None:
    stream = Stream([Event(1, 1000, "forward", "a"), Event(2, 600, "forward", "b"), Event(1, 0, "backward", "")])
    stream.categories = {1: "activations", 2: "temporaries"}
    peak = find_peak(stream)
    assert peak.total_bytes == 1024 + 1024 and peak.phase == "forward"
    assert peak.by_category == dict.fromkeys(CATEGORIES, 0) | {"activations": 1024, "temporaries": 1024}


def test_eight_bit_states_take_two_bytes_and_their_scales(estimator: Estimator) -> None:
    full, small = (
        estimator.footprint(STRATEGIES[name], 4, 128, accumulating=True).by_category["optimizer"]
        for name in ("plain", "8bit")
    )
    count = estimator.num_parameters
    # Of 8 bytes of moments 2 are left, and 2 x 4 bytes for each 256; small parameters keep all 8.
    assert full - small == pytest.approx((8 - 2 - 8 / 256) * count, rel=0.15)


@pytest.mark.parametrize("name", [name for name, row in STRATEGIES.items() if not row.needs_deepspeed])
def test_more_windows_never_need_less(estimator: Estimator, name: str) -> None:
    # Streamed steps are traced at each size.
    sizes = (1, 2, 7) if STRATEGIES[name].stream else (1, 2, 4, 7, 16)
    peaks = [estimator.estimate(STRATEGIES[name], size, 128, accumulating=True).allocated_bytes for size in sizes]
    assert peaks == sorted(peaks)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_categories_sum_to_the_total_and_reserved_covers_allocated(estimator: Estimator, name: str) -> None:
    found = estimator.estimate(STRATEGIES[name], 4, 128, accumulating=False, world_size=2)
    if STRATEGIES[name].device == "cuda":
        traced = sum(size for kind, size in found.by_category.items() if kind != "context")
        assert traced == pytest.approx(found.allocated_bytes, rel=0.01)
        assert found.device_bytes > found.reserved_bytes >= found.allocated_bytes
    else:
        assert sum(found.by_category.values()) == pytest.approx(found.host_bytes, rel=0.001)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"])
def test_more_gpus_never_need_more_of_each(name: str) -> None:
    sizes = [states(STRATEGIES[name], 330_000_000, 33_000_000, count) for count in (1, 2, 4, 8)]
    totals = [s.weights_bytes + s.gradients_bytes + s.optimizer_bytes + s.buffers_bytes for s in sizes]
    assert totals == sorted(totals, reverse=True)


def test_recomputation_and_shorter_windows_need_less(estimator: Estimator) -> None:
    def peak(name: str, length: int = 128) -> int:
        return estimator.estimate(STRATEGIES[name], 16, length, accumulating=False).allocated_bytes

    assert peak("recompute") < peak("selective") < peak("plain") < peak("plain-fp32")
    assert peak("plain", 96) < peak("plain")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "electra", "embedding_size": 64},
        {"model_type": "roberta", "max_position_embeddings": 130, "pad_token_id": 1},
        {"model_type": "xlm-roberta", "max_position_embeddings": 130, "pad_token_id": 1},
        {"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pad_token_id": 0},
        {"model_type": "modernbert", "global_attn_every_n_layers": 3, "pad_token_id": 0},
        {"model_type": "llama", "num_key_value_heads": 2, "pad_token_id": 0},
        {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0},
    ],
    ids=lambda changes: changes["model_type"],
)
def test_every_family_is_predicted(changes: dict[str, Any]) -> None:
    estimator = estimator_for(config_of(**changes))
    plain, again = (estimator.estimate(STRATEGIES[name], 4, 96, accumulating=False) for name in ("plain", "recompute"))
    assert 0 < again.allocated_bytes < plain.allocated_bytes


def test_no_weights_are_made() -> None:
    estimator = estimator_for(config_of(hidden_size=16384, intermediate_size=65536, num_attention_heads=128))
    assert estimator.num_parameters > 19e9  # 78 GB in fp32
    assert estimator.estimate(STRATEGIES["plain"], 1, 128, accumulating=False).allocated_bytes > 300e9


def test_depths_keep_their_kinds_of_layers() -> None:
    config = config_of(model_type="modernbert", global_attn_every_n_layers=3, pad_token_id=0)
    assert with_layers(config, 3).num_hidden_layers == 3
    assert config.num_hidden_layers == 6
    with torch.device("meta"):
        assert estimator_for(config).make_model(with_layers(config, 3)) is not None


def test_dropout_keeps_a_byte_for_each_element_on_a_gpu(estimator: Estimator) -> None:
    stream = whole_trace(estimator, Strategy(precision="bf16"), 2, accumulating=False)
    masks = [event for event in stream.events if event.operation == "native_dropout" and event.phase == "forward"]
    sizes = {event.size_bytes for event in masks}
    assert masks and len(sizes) == 2 and max(sizes) == 2 * min(sizes)  # bf16 results, masks of one byte


def test_a_timeline_keeps_the_peak(estimator: Estimator) -> None:
    strategy = Strategy(precision="bf16", recompute="full")
    timeline = estimator.timeline(strategy, 4, 128, accumulating=False)
    # Of what blocks hold beyond what was asked for, a timeline knows nothing.
    allocated = estimator.footprint(strategy, 4, 128, accumulating=False).allocated_bytes
    assert allocated - MIB <= max(timeline.totals) <= allocated
    assert timeline.phases[0] == "forward" and timeline.phases[-1] == "optimizer"
    assert len(timeline.totals) <= 400


@pytest.mark.parametrize("name", ["plain", "recompute", "cpu-8bit", "stochastic-release-recompute"])
def test_remembered_shapes_are_those_that_torch_works_out(
    estimator: Estimator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def trace() -> Any:
        stream = whole_trace(estimator, STRATEGIES[name], 3, accumulating=False)
        return [(event.storage, event.size_bytes, event.phase, event.operation) for event in stream.events]

    remembered = trace()
    monkeypatch.setattr("bigqa.memory.shapes.key_of", lambda *_: None)
    assert trace() == remembered
