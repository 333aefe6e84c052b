"""The named attention gives what the library's own gives, with masks, and its gradients."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForQuestionAnswering

from bigqa.engine.attention import kernels as attention

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "modernbert", "llama", "qwen3"])
def test_logits_and_gradients_are_the_librarys(family: str, dropout: float) -> None:
    """A dropout too small to drop anything takes the other path through the same mathematics.

    In double precision: how far two orders of adding up are apart in fp32 hangs on the processor.
    """
    extra: dict[str, Any] = {"pad_token_id": 0, "max_position_embeddings": 64, "attention_dropout": dropout}
    extra |= {"num_key_value_heads": 2, "head_dim": 8} if family in ("llama", "qwen3") else {}
    extra |= {"attention_probs_dropout_prob": dropout, "hidden_dropout_prob": 0.0}
    config = AutoConfig.for_model(family, **(SMALL | extra))
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config, attn_implementation="eager").double().train()
    ids, open_BS = torch.randint(5, 50, (3, 20)), torch.ones(3, 20, dtype=torch.long)
    open_BS[1, 12:] = 0
    expected = _run(model, ids, open_BS)
    assert attention.use(model)
    for found, wanted in zip(_run(model, ids, open_BS), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("family", ["t5", "umt5"])
def test_a_model_with_biases_of_its_own_keeps_its_attention(family: str) -> None:
    """T5 hands the interface a bias of relative positions, which the kernels would leave out."""
    sizes = {"d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2}
    config = AutoConfig.for_model(family, vocab_size=50, decoder_start_token_id=0, **sizes)
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config, attn_implementation="eager").eval()
    ids, open_BS = torch.randint(5, 50, (3, 20)), torch.ones(3, 20, dtype=torch.long)
    expected = _run(model, ids, open_BS)
    assert not attention.use(model)
    for found, wanted in zip(_run(model, ids, open_BS), expected, strict=True):
        assert torch.equal(found, wanted)


def _run(model: Any, ids: torch.Tensor, open_BS: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(input_ids=ids, attention_mask=open_BS)
    logits = (output.start_logits + 2 * output.end_logits) * open_BS
    logits.square().sum().backward()
    gradients = [p.grad.clone() for _, p in sorted(model.named_parameters()) if p.grad is not None]
    return [logits.detach(), *gradients]


class Asked(TorchDispatchMode):
    """Keeps what the memory-efficient kernel is given as its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.biases: list[torch.Tensor | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "_scaled_dot_product_efficient_attention":
            self.biases.append(args[3])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("length", [24, 29])
def test_a_mask_comes_to_a_gpus_kernel_in_rows_that_it_can_read(length: int) -> None:
    with torch.device("meta"):
        query, mask = torch.empty(3, 4, length, 8), torch.empty(3, 1, 1, length, dtype=torch.bool)
    with attention.standing_in_for("cuda"), Asked() as asked:
        for given in (mask, None):
            context, _ = attention.attention(torch.nn.Module(), query, query, query, given)
            assert context.shape == (3, length, 4, 8)
    bias, none = asked.biases
    assert none is None and bias is not None and bias.shape == (3, 4, length, length)
    assert bias.stride(2) % 8 == 0 and bias.stride(3) == 1
