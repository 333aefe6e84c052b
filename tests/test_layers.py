"""Rates that fall by layer, and layers that learn nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import train
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

from bigqa.engine.layers import distances, freeze, rate_shares
from bigqa.engine.optim.optimizers import parameter_groups
from bigqa.errors import BigqaError
from bigqa.models.sources import load_config, load_model, resolve


@pytest.fixture(scope="module")
def bert() -> Any:
    source = resolve("tiny")
    return load_model(source, load_config(source))


def test_distances_are_counted_from_the_output(bert: Any) -> None:
    found = distances(bert)
    for name, distance in found.items():
        if ".layer." in name:
            assert distance == 3 - int(name.split(".layer.")[1][0]), name
        else:
            assert distance == (4 if "embeddings" in name else 0), name
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 20}
    llama = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=2, **sizes))
    found = distances(llama)
    assert (found["model.embed_tokens.weight"], found["model.norm.weight"], found["lm_head.weight"]) == (3, 0, 0)
    t5 = AutoModelForSeq2SeqLM.from_config(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=9))
    found = distances(t5)
    assert found["shared.weight"] == 3 and found["decoder.final_layer_norm.weight"] == 0
    assert {found[name] for name in found if name.startswith("decoder.block.1.")} == {1}


def test_shares_and_decay_are_two_things(bert: Any) -> None:
    parameters = dict(bert.named_parameters())
    groups = parameter_groups(parameters, {"qa_outputs.bias"}, 0.1, rate_shares(bert, 0.5))
    of = {id(one): group for group in groups for one in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(parameters)
    head, bias = (of[id(parameters[f"qa_outputs.{kind}"])] for kind in ("weight", "bias"))
    assert (head["weight_decay"], head["rate_share"], bias["weight_decay"], bias["rate_share"]) == (0.1, 1.0, 0.0, 1.0)
    words = of[id(parameters["bert.embeddings.word_embeddings.weight"])]
    assert (words["weight_decay"], words["rate_share"]) == (0.1, 0.5**4)
    assert len(parameter_groups(parameters, {"qa_outputs.bias"}, 0.1)) == 2


@pytest.mark.parametrize("strategy", ["cpu", "release-recompute"])
def test_a_step_moves_layers_by_their_rates(bert: Any, tmp_path: Path, strategy: str) -> None:
    """Adam's first step is the rate, whatever the gradient; two runs of one step are as far apart as their rates."""
    out = tmp_path / "run"
    train(out, max_steps=1, lr=1e-3, warmup=0.0, weight_decay=0.0, layer_decay=0.5, strategy=strategy)
    trained = load_file(out / "model" / "model.safetensors")
    before, found = dict(bert.named_parameters()), distances(bert)
    for name in ("qa_outputs.weight", *(f"bert.encoder.layer.{n}.output.dense.weight" for n in range(3))):
        moved = (trained[name] - before[name]).abs().quantile(0.9).item()
        wanted = 1e-3 * 0.5 ** found[name]
        assert moved == pytest.approx(wanted, rel=0.02), name


def test_frozen_layers_stay_as_they_were(bert: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, max_steps=2, lr=1e-3, warmup=0.0, freeze_layers=1)
    trained = load_file(out / "model" / "model.safetensors")
    same = {name for name, one in bert.named_parameters() if torch.equal(trained[name], one.detach())}
    assert same == {name for name in trained if "embeddings" in name or ".layer.0." in name}


def test_more_layers_than_there_are_are_refused(bert: Any) -> None:
    with pytest.raises(BigqaError, match="--freeze-layers 4: BertForQuestionAnswering has 3 layers"):
        freeze(bert, 4)
    with pytest.raises(BigqaError, match="Linear has no list of layers"):
        distances(torch.nn.Linear(2, 2))


def test_what_has_an_update_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BigqaError, match="--layer-decay goes neither with ZeRO nor with streamed layers"):
        train(tmp_path / "run", strategy="zero2", layer_decay=0.9)
