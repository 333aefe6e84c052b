"""Configurations of other depths: lists with an entry for each layer go with them, and what repeats is told."""

from typing import Any

import pytest
from transformers import AutoConfig

from bigqa.memory.depth import depths_for, period_of, with_layers
from bigqa.memory.whole import whole_footprint
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "vocab_size": 100,
    "pad_token_id": 0,
}
T5 = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "vocab_size": 100, "pad_token_id": 0}


def config_of(kind: str, **more: Any) -> Any:
    return AutoConfig.for_model(kind, **(SMALL | more))


def depths_of(config: Any) -> tuple[int, int]:
    return depths_for(config, estimator_for(config).make_model)


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        ("longformer", "attention_window", [8, 16, 32, 8, 16, 32]),
        ("qwen3", "layer_types", ["full_attention", "full_attention", "sliding_attention"] * 2),
        ("smollm3", "no_rope_layers", [1, 1, 0] * 2),
    ],
)
def test_lists_are_cut_or_go_on_as_they_repeat(kind: str, name: str, values: list[Any]) -> None:
    config = config_of(kind, **{name: values})
    assert period_of(config) == 3
    for layers in (3, 8):
        changed = with_layers(config, layers)
        assert changed.num_hidden_layers == layers
        assert getattr(changed, name) == [values[index % 3] for index in range(layers)]
    assert getattr(config, name) == values
    assert depths_of(config) == (3, 6) or depths_of(config) == (6, 7)


def test_a_decoder_as_deep_as_its_encoder_stays_so() -> None:
    both = AutoConfig.for_model("t5", **T5, num_layers=6, num_decoder_layers=6)
    assert (with_layers(both, 2).num_layers, with_layers(both, 2).num_decoder_layers) == (2, 2)
    other = AutoConfig.for_model("t5", **T5, num_layers=6, num_decoder_layers=3)
    assert (with_layers(other, 2).num_layers, with_layers(other, 2).num_decoder_layers) == (2, 3)
    assert depths_of(both) == depths_of(other) == (2, 3)


FUNNEL = {"block_sizes": [2, 4], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "vocab_size": 100}
IRREGULAR = ["full_attention"] * 5 + ["sliding_attention"]


@pytest.mark.parametrize(
    "config",
    [
        AutoConfig.for_model("funnel", **FUNNEL),
        config_of("qwen3", layer_types=IRREGULAR),
        config_of("qwen3_moe", mlp_only_layers=[4], num_experts=4, moe_intermediate_size=8, head_dim=8),
    ],
    ids=["blocks", "kinds", "experts"],
)
def test_layers_that_do_not_repeat_are_all_traced(config: Any) -> None:
    assert depths_of(config) == (6, 6)


def test_longformer_is_scaled_to_what_all_its_layers_take() -> None:
    found = estimator_for(config_of("longformer", attention_window=[16] * 6))
    strategy = STRATEGIES["cpu"].model_copy(update={"precision": "fp32"})
    scaled = found.footprint(strategy, 2, 64, accumulating=False)
    key = found._key(strategy, 64, accumulating=False, card=None)  # type: ignore[arg-type]
    whole = whole_footprint(found._trace(key, 6, 2), made_on_host=False)
    assert (scaled.allocated_bytes, scaled.flops) == (whole.allocated_bytes, whole.flops)
