"""What adapters leave of a model: which layers are in 4 bits, what is trained, and what is there after merging."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    GPT2Config,
    GPT2ForQuestionAnswering,
    SplinterConfig,
    SplinterForQuestionAnswering,
)
from transformers.pytorch_utils import Conv1D

from bigqa.engine import adapters, modules
from bigqa.engine.quantized import QuantizedLinear
from bigqa.errors import BigqaError

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")
HIDDEN, INNER, LAYERS = 64, 128, 2
IDS = torch.arange(24).view(1, 24)


def bert() -> BertForQuestionAnswering:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=INNER, vocab_size=128
    )
    return BertForQuestionAnswering(config).eval()


def layers_in(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_adapters_and_the_head_are_trained_and_nothing_else(kind: Any) -> None:
    plain, model = bert(), bert()
    adapters.apply(model, kind)
    inner = {name: layer for name, layer in layers_in(plain).items() if name != "qa_outputs"}
    # r (in + out) for each layer, as the paper counts them; the head's own weights and bias.
    rank = sum(16 * (layer.in_features + layer.out_features) for layer in inner.values())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == rank + 2 * HIDDEN + 2
    assert {name for name in trained if "lora_" not in name} == {"qa_outputs.weight", "qa_outputs.bias"}
    bases = [model.get_submodule(name).get_base_layer() for name in inner]  # type: ignore[operator]
    assert {type(base) for base in bases} == {QuantizedLinear if kind == "qlora" else nn.Linear}
    if kind == "lora":  # adapters begin at nothing
        assert torch.equal(model.eval()(input_ids=IDS).start_logits, plain(input_ids=IDS).start_logits)


def test_adapters_have_the_dropout_of_the_device() -> None:
    model = bert()
    adapters.apply(model, "lora")
    modules.swap(model, "cpu")
    drops = {type(module) for name, module in model.named_modules() if "lora_dropout.default" in name}
    assert drops == {modules.DrawnDropout}


def test_merged_lora_is_the_plain_model_with_other_weights(tmp_path: Any) -> None:
    model = bert()
    adapters.apply(model, "lora")
    model.eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    trained = model(input_ids=IDS).start_logits
    adapters.merge(model)
    assert model.state_dict().keys() == bert().state_dict().keys()
    torch.testing.assert_close(model(input_ids=IDS).start_logits, trained, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    saved = BertForQuestionAnswering.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(saved(input_ids=IDS).start_logits, trained, atol=1e-4, rtol=1e-4)


def test_a_merged_model_says_that_it_has_no_adapters() -> None:
    model = bert()
    adapters.apply(model, "lora")
    model._hf_peft_config_loaded = True  # type: ignore[assignment]
    adapters.merge(model)
    assert model._hf_peft_config_loaded is False
    plain = nn.Sequential(nn.Linear(2, 2))
    adapters.merge(plain)
    assert not hasattr(plain, "_hf_peft_config_loaded")


def test_four_bit_layers_are_bitsandbytes_own() -> None:
    torch.manual_seed(0)
    source = nn.Linear(128, 257)
    layer = QuantizedLinear(source)
    weight = bitsandbytes.functional.dequantize_4bit(
        *bitsandbytes.functional.quantize_4bit(
            source.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4"
        )
    )
    x = torch.randn(3, 128, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, nn.functional.linear(x, weight, source.bias))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones(3, 257) @ weight)
    kept = layer.weight.nbytes + sum(tensor.nbytes for tensor in layer.state_tensors())
    assert layer.weight.nbytes == 128 * 257 // 2 and kept < 128 * 257 * 4 // 2
    with torch.device("meta"):
        empty = QuantizedLinear(nn.Linear(128, 257))
    assert empty.weight.shape == layer.weight.shape and empty.unpacked(torch.float32).shape == weight.shape
    # The scales of blocks of 64, theirs, and tables of codes.
    kept_by = [[(tensor.shape, tensor.dtype) for tensor in one.state_tensors()] for one in (layer, empty)]
    assert kept_by[0] == kept_by[1]


def gpt2() -> GPT2ForQuestionAnswering:
    torch.manual_seed(0)
    return GPT2ForQuestionAnswering(GPT2Config(n_embd=HIDDEN, n_layer=LAYERS, n_head=4, vocab_size=128)).eval()


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_weights_that_lie_the_other_way_round_are_adapted_and_merged(kind: Any) -> None:
    """GPT-2's layers are no `nn.Linear`."""
    model = gpt2()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapters.apply(model, kind)
    model.eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    trained = model(input_ids=IDS).start_logits
    adapters.merge(model)
    assert {name: weight.shape for name, weight in model.state_dict().items()} == {
        name: weight.shape for name, weight in before.items()
    }
    layer = model.transformer.h[0].mlp.c_fc
    assert type(layer) is Conv1D and not torch.equal(layer.weight, before["transformer.h.0.mlp.c_fc.weight"])
    torch.testing.assert_close(model(input_ids=IDS).start_logits, trained, atol=1e-4, rtol=1e-4)


def test_a_head_of_another_name_is_trained() -> None:
    config = SplinterConfig(
        hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=4, intermediate_size=INNER, vocab_size=128
    )
    model = SplinterForQuestionAnswering(config)
    adapters.apply(model, "lora")
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"splinter_qass"}


def test_a_model_without_linear_layers_is_refused_in_a_line() -> None:
    with pytest.raises(BigqaError, match="no linear layers"):
        adapters.apply(nn.Sequential(nn.LayerNorm(2)), "lora")
