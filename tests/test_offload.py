"""Activation offload changes where tensors lie, nothing else; 4-bit layers compute with what their codes stand for."""

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering

from bigqa.engine import adapters, recompute
from bigqa.engine.offload import MIN_BYTES, ON_THEIR_WAY, ActivationOffload, _InPlace


def bert(hidden: int, layers: int) -> BertConfig:
    return BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        vocab_size=128,
    )


def gradients(model: nn.Module, offload: ActivationOffload | None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    ids = torch.arange(2 * 128).view(2, 128) % 100
    torch.manual_seed(7)
    if offload is None:
        loss = model(input_ids=ids).start_logits.float().logsumexp(-1).sum()
    else:
        with offload.keeping():
            loss = model(input_ids=ids).start_logits.float().logsumexp(-1).sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_gradients_are_the_same_to_the_last_bit(mode: Any) -> None:
    config = bert(256, 3)
    torch.manual_seed(0)
    model = BertForQuestionAnswering(config).train()
    recompute.apply(model, mode)
    offload = ActivationOffload(model)
    stayed, went = gradients(model, None), gradients(model, offload)
    assert offload.host_bytes > 3 * 2 * 128 * 256 * 4  # at the least the input of every layer
    assert all(torch.equal(stayed[name], went[name]) for name in stayed)


def test_only_a_few_storages_are_left_on_the_device() -> None:
    layers = 12
    x = torch.ones(MIN_BYTES // 4, requires_grad=True)
    alive: list[weakref.ref[Any]] = []
    offload = ActivationOffload(nn.Module())
    with offload.keeping():
        y = x
        for _ in range(layers):
            y = y.sin()
            alive.append(weakref.ref(y.untyped_storage()))
    # The result of the last operation is kept by nobody but `y`, and may still be on its way.
    assert sum(one() is not None for one in alive) <= ON_THEIR_WAY + 1
    assert offload.host_bytes == layers * MIN_BYTES
    y.sum().backward()
    expected = torch.ones_like(x, requires_grad=True)
    z = expected
    for _ in range(layers):
        z = z.sin()
    z.sum().backward()
    assert torch.equal(x.grad, expected.grad)  # type: ignore[arg-type]


def test_a_storage_that_many_operations_keep_goes_once() -> None:
    x = torch.ones(MIN_BYTES // 4, requires_grad=True)
    offload = ActivationOffload(nn.Module())
    with offload.keeping():
        y = x * 2
        loss = sum((y * y).sum() for _ in range(5))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert offload.host_bytes == MIN_BYTES  # y alone: each product keeps it twice
    assert x.grad is not None and torch.equal(x.grad, torch.full_like(x, 40.0))


def test_a_storage_comes_back_once_for_all_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    back, came = _InPlace.back, []

    def watched(self: Any, host: torch.Tensor) -> Any:
        came.append(host.data_ptr())
        return back(self, host)

    monkeypatch.setattr(_InPlace, "back", watched)
    x = torch.ones(MIN_BYTES // 4, requires_grad=True)
    offload = ActivationOffload(nn.Module())
    with offload.keeping():
        y = x * 2
        loss = sum((y * y).sum() for _ in range(5))
        z = x
        for _ in range(2 * ON_THEIR_WAY):  # by then y is on the host alone
            z = z.sin()
    (loss + z.sum()).backward()
    assert came and len(came) == len(set(came))


def test_merged_qlora_is_the_model_that_was_trained() -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    config = bert(64, 2)
    torch.manual_seed(0)
    model = BertForQuestionAnswering(config).eval()
    ids = torch.arange(24).view(1, 24)
    before = model(input_ids=ids).start_logits
    adapters.apply(model, "qlora")
    model.eval()  # adapters come with a dropout of their own
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    trained = model(input_ids=ids).start_logits
    adapters.merge(model)
    merged = model(input_ids=ids).start_logits
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    torch.testing.assert_close(merged, trained, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, trained, atol=1e-3)


def test_weights_that_zero_3_gathers_are_no_activations() -> None:
    """A gathered weight is another storage than before the pass; the backward pass gathers it anew."""
    model = nn.Linear(2, 2)
    weight = model.weight
    weight.ds_id = 0  # type: ignore[attr-defined]
    weight.data = torch.empty(0)
    offload = ActivationOffload(model)
    x = torch.ones(512, 256, requires_grad=True)
    with offload.keeping():
        weight.data = torch.ones(256, 256)
        y = (x @ weight).sin()
    assert offload.sent == (512 * 256 * 4,) * 2  # what the product and the sine keep
    y.sum().backward()
    assert weight.grad is not None
