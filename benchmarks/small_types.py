"""A small configuration of each type of model that the library has a question-answering head for. In: a type. Out: it.

Sizes go by the names that configurations have for them; what a type wants beside these stands in `OWN`.
"""

import dataclasses
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_QUESTION_ANSWERING_MAPPING

from bigqa.sample import FOLDER

WIDTH, LAYERS, HEADS, LONGEST = 64, 4, 4, 258
VOCABULARY = len((FOLDER / "vocab.txt").read_text(encoding="utf-8").splitlines())
SIZES = {
    VOCABULARY: ("vocab_size",),
    WIDTH: (
        "hidden_size", "d_model", "n_embd", "dim", "emb_dim", "input_embedding_size", "embedding_size",
        "output_embedding_size", "word_embed_proj_dim",
    ),
    LAYERS: (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
        "num_decoder_layers", "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
        "decoder_attention_heads",
    ),
    2 * WIDTH: (
        "intermediate_size", "hidden_dim", "d_inner", "n_inner", "ffn_hidden_size", "encoder_ffn_dim",
        "decoder_ffn_dim", "ffn_dim", "d_ff", "feed_forward_size", "moe_intermediate_size",
        "shared_expert_intermediate_size",
    ),
    WIDTH // HEADS: ("head_dim", "d_kv", "d_head", "attention_head_size"),
    LONGEST: (
        "max_position_embeddings", "n_positions", "max_encoder_position_embeddings", "max_decoder_position_embeddings",
        "max_seq_len",
    ),
    8: ("num_experts", "num_local_experts"),
    2: ("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "bos_token_id"),
    3: ("eos_token_id", "sep_token_id"),
    0: ("pad_token_id",),
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 8, "num_random_blocks": 2},
    "bigbird_pegasus": {"block_size": 8, "num_random_blocks": 2},
    "canine": {"num_hash_buckets": 128},
    "funnel": {"block_sizes": [2, 2], "block_repeats": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 32},
    "gptj": {"rotary_dim": 4},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8, "input_size": 32},
    "led": {"attention_window": [32] * LAYERS},
    "lilt": {"channel_shrink_ratio": 2, "hidden_size": 96},
    "longformer": {"attention_window": [32] * LAYERS},
    "luke": {"entity_emb_size": 16, "entity_vocab_size": 16},
    "markuplm": {"max_depth": 4, "xpath_unit_hidden_size": 8},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "modernbert": {"local_attention": 32},
    "qwen3_next": {
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    },
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "lsh"], "axial_pos_embds": False, "num_buckets": 4,
        "is_decoder": False, "local_attn_chunk_length": 32, "lsh_attn_chunk_length": 32,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8, "pronunciation_vocab_size": 32, "shape_embed_dim": 8, "shape_vocab_size": 32,
    },
    "splinter": {"question_token_id": 4},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"languages": ["ko_KR"], "default_language": "ko_KR"},
}  # fmt: skip
"""Of XMOD: the published configurations name no language, and are refused until one is named. Of T5: they all say with
what a decoder starts, and the class has no default for it."""


def kinds() -> list[str]:
    """Return the types that the installed library has such a head for."""
    return sorted(config.model_type for config in MODEL_FOR_QUESTION_ANSWERING_MAPPING)


def small(kind: str, **changes: Any) -> Any:
    """Return a type's configuration."""
    made = CONFIG_MAPPING[kind]
    names = {field.name for field in dataclasses.fields(made)}
    sizes = {name: value for value, group in SIZES.items() for name in group if name in names}
    return made(**(sizes | OWN.get(kind, {}) | changes))
