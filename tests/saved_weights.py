"""A small model in a folder, its weights, and what loading them says. In: a folder. Out: weights, or a line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, BertForQuestionAnswering

from bigqa.errors import BigqaError
from bigqa.models.sources import load, load_config, resolve
from bigqa.models.weights import Loaded

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
State = dict[str, Tensor]


def save_bert(folder: Path) -> Path:
    """Save a fine-tuned model; return its folder."""
    torch.manual_seed(1)
    BertForQuestionAnswering(AutoConfig.for_model("bert", **SIZES)).save_pretrained(folder)
    return folder


def weights(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def change(folder: Path, changed: Callable[[State], State]) -> None:
    state = {name: value.clone() for name, value in changed(weights(folder)).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def loaded(folder: Path, **options: Any) -> Loaded:
    source = resolve(str(folder))
    return load(source, load_config(source), **options)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(BigqaError) as caught:
        loaded(folder, **options)
    return str(caught.value)
