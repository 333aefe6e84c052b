"""Recomputation draws what the forward pass drew: dropout behind a kept operation that draws keeps its mask."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig

from bigqa.engine import recompute
from bigqa.engine.build import change_modules
from bigqa.plan.planner import estimator_for
from bigqa.strategy import Strategy


@torch.library.custom_op("bigqa_test::attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def attention(x: Tensor) -> Tensor:
    """Stands for a GPU's attention: one operation that draws its own dropout. A CPU has none such."""
    return x * (torch.rand(x.shape) > 0.1)


def _backward(ctx: Any, gradient: Tensor) -> Tensor:
    return gradient * ctx.kept


def _setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.kept = (output != 0).to(output.dtype)


torch.library.register_autograd("bigqa_test::attention", _backward, setup_context=_setup)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.first(torch.ops.bigqa_test.attention(x)), 0.2)
        x = nn.functional.dropout(torch.ops.bigqa_test.attention(torch.tanh(x)), 0.3)
        return torch.tanh(self.second(x))


def gradients(**options: Any) -> list[Tensor]:
    layers = [Layer(), Layer()]
    torch.manual_seed(1)
    x = torch.randn(16, 32)
    for layer in layers:
        x = checkpoint(layer, x, use_reentrant=False, **options) if options else layer(x)
    x.square().sum().backward()
    return [parameter.grad for layer in layers for parameter in layer.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kept", [False, True], ids=["recomputed", "kept"])
def test_later_dropout_is_drawn_as_before(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    own = {torch.ops.bigqa_test.attention.default} if kept else set()
    monkeypatch.setattr(recompute, "COSTLY", recompute.COSTLY | own)
    plain, found = gradients(), gradients(context_fn=recompute.contexts)
    assert len(plain) == 8
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_every_kept_operation_that_draws_is_known_to_draw() -> None:
    """What torch tags as drawing is what is put in place; an attention that drew without the tag would be missed."""
    draws = {operation for operation in recompute.COSTLY if "attention" in operation.name()}
    assert draws and all(torch.Tag.nondeterministic_seeded in operation.tags for operation in draws)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_a_decoder_keeps_nothing_for_a_next_token_as_it_trains(mode: str) -> None:
    """Nor does the model that is made next of the same configuration know of it."""
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50,
        max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    estimator = estimator_for(config)
    model = estimator.make_model(config)
    assert model.config.use_cache
    change_modules(model, Strategy(precision="fp32", device="cpu", recompute=mode))
    output = model.train().base_model(input_ids=torch.ones(1, 8, dtype=torch.long))
    assert output.past_key_values is None
    assert config.use_cache and estimator.make_model(config).config.use_cache


def test_what_is_predicted_does_not_hang_on_what_was_predicted_before() -> None:
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=500,
        max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    first, second = (estimator_for(config) for _ in range(2))
    plain, recompute = Strategy(precision="bf16"), Strategy(precision="bf16", recompute="full")
    asked = {"accumulating": False, "whole": True}
    alone = first.estimate(plain, 4, 128, **asked)
    second.estimate(recompute, 4, 128, **asked)
    assert second.estimate(plain, 4, 128, **asked) == alone
