"""How fast a step is said to be, worked by hand."""

from dataclasses import replace

import pytest
from hand_made import RATES
from transformers import BertConfig

from bigqa.memory.scaling import Footprint
from bigqa.plan.planner import estimator_for
from bigqa.speed.throughput import Rates, Shape, speed_of
from bigqa.strategy import Strategy

WORK = Footprint(
    allocated_bytes=0,
    reserved_bytes=0,
    phase="forward",
    by_category={},
    largest=(),
    flops=8 * 10**12,  # 4 s at 2e12 FLOP/s
    moved_bytes=0,
    operations=0,
    step_bytes=0,
    swing_bytes=10**9,
)
SHAPE = Shape(micro_batch=4, seq_len=64, num_micro_batches=1, num_parameters=0)


def seconds(rates: Rates, **changes: bool) -> float:
    return speed_of(WORK, Strategy(device="cpu", precision="bf16"), rates, replace(SHAPE, **changes)).step_s


def test_memory_that_was_free_for_too_long_costs_what_its_host_takes() -> None:
    """Of 4 s, what comes back within 2 is fresh; the other half of a GB is made anew: 1 s at 0.5 GB/s, not 0.05."""
    measured = replace(RATES, fresh_bytes_per_s=10e9, stale_bytes_per_s=0.5e9)
    assert seconds(replace(RATES, fresh_bytes_per_s=10e9)) == pytest.approx(4.0)
    assert seconds(measured) == pytest.approx(4.0 + 0.5 * (2.0 - 0.1))
    assert seconds(measured, keeps_memory=True) == pytest.approx(4.0)


def test_in_a_short_step_no_memory_is_free_for_long() -> None:
    measured = replace(RATES, low_flops_per_s=8e12, fresh_bytes_per_s=10e9, stale_bytes_per_s=0.5e9)
    assert seconds(measured) == pytest.approx(1.0)


def test_what_a_micro_batch_takes_and_gives_back_is_more_than_its_activations_and_less_than_all() -> None:
    estimator = estimator_for(BertConfig(num_hidden_layers=4, hidden_size=64, num_attention_heads=2, vocab_size=100))
    plain = Strategy(device="cpu", precision="fp32")
    recompute = plain.model_copy(update={"recompute": "full"})
    work = estimator.footprint(plain, 8, 128, accumulating=False)
    assert work.phase == "backward"
    assert work.by_category["activations"] <= work.swing_bytes < work.allocated_bytes
    assert work.allocated_bytes - work.swing_bytes >= 12 * estimator.num_parameters  # weights and moments stay
    assert estimator.footprint(recompute, 8, 128, accumulating=False).swing_bytes < work.swing_bytes


def test_released_gradients_are_stepped_with_once_in_a_step_and_not_in_every_micro_batch() -> None:
    estimator = estimator_for(BertConfig(num_hidden_layers=4, hidden_size=64, num_attention_heads=2, vocab_size=9000))
    kept = Strategy(device="cpu", precision="bf16-sr", optimizer="adamw8bit", recompute="full")
    released = kept.model_copy(update={"release": True})
    first, second = (estimator.footprint(one, 1, 128, accumulating=True) for one in (kept, released))
    assert second.moved_bytes == pytest.approx(first.moved_bytes, rel=0.05)
    assert second.step_bytes > 0.5 * first.step_bytes > 0
