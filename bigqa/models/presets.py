"""Models that have a name of their own: architectures as released, and the recipes that were published with them.

In: nothing. Out: configurations without weights, hyper-parameters.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

TINY = "tiny"
"""The preset that lies in the sample's folder."""


class Recipe(BaseModel):
    """Published fine-tuning hyper-parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq_len: int = 512
    doc_stride: int = 128
    max_query_length: int = 64
    lr: float = 5e-5
    epochs: float = 4
    global_batch: int = 16
    warmup: float = 0.1


class Preset(BaseModel):
    """An architecture, its recipe, and how its tokenizer treats case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, Any]
    recipe: Recipe
    lower_case: bool = False


def _bert(layers: int, hidden: int, heads: int, ffn: int, positions: int, act: str) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "max_position_embeddings": positions,
        "hidden_act": act,
        "vocab_size": 32000,
    }


PRESETS = {
    "enliple-small": Preset(config=_bert(12, 256, 8, 1024, 512, "gelu_new"), recipe=Recipe(), lower_case=True),
    "enliple-large-v1": Preset(config=_bert(24, 1024, 16, 4096, 512, "gelu"), recipe=Recipe()),
    "enliple-large-v2": Preset(
        config=_bert(24, 1024, 16, 4096, 384, "gelu"), recipe=Recipe(seq_len=384, lr=3e-5, epochs=2)
    ),
    "bert-base": Preset(config=_bert(12, 768, 12, 3072, 512, "gelu"), recipe=Recipe()),
}
"""Architectures as released and hyper-parameters as published by Enliple (github.com/enlipleai/kor_pretrain_LM), and
BERT-base's (arXiv:1810.04805) with as large a vocabulary and the same recipe."""


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return [*PRESETS, TINY]
