"""What MODEL may be: architectures, presets, positions, and refusals."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from bigqa.errors import BigqaError
from bigqa.models.sources import check_lengths, load_config, load_model, load_tokenizer, resolve, usable_positions
from bigqa.run.job import task_of
from bigqa.tasks.registry import kind_of

SMALL = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
FAMILIES = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 32},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
}


class Tokenizer:
    pad_token_id = 0
    sep_token_id = None


def loss_of_the_library(model: Any, row: dict[str, Any]) -> float:
    """Return a window's loss as transformers has it: for a window alone, which needs no padding."""
    names = inspect.signature(model.forward).parameters
    inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "token_type_ids") if name in names}
    places = {f"{name}_positions": torch.tensor([row[name]]) for name in ("start", "end")}
    return float(model(**inputs, **places).loss.detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_its_loss_is_the_librarys_without_padding(tmp_path: Path, family: str) -> None:
    config = AutoConfig.for_model(family, **(SMALL | FAMILIES[family]))
    config.save_pretrained(tmp_path)
    source = resolve(str(tmp_path / "config.json"))
    model = load_model(source, load_config(source)).eval()
    task = task_of(kind_of("qa"), None, Tokenizer(), model)
    rows = [
        {"input_ids": [2, 9, 3, 8, 7, 3], "token_type_ids": [0, 0, 0, 1, 1, 1], "start": 3, "end": 4},
        {"input_ids": [2, 9, 3, 8, 7, 6, 5, 4, 9, 3], "token_type_ids": [0] * 3 + [1] * 7, "start": 5, "end": 6},
    ]
    together = task.loss_sum(model, task.collate(rows))
    assert together.item() == pytest.approx(sum(loss_of_the_library(model, row) for row in rows), rel=1e-4)
    together.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "positions", "activation"),
    [
        ("enliple-small", 12, 256, 512, "gelu_new"),
        ("enliple-large-v1", 24, 1024, 512, "gelu"),
        ("enliple-large-v2", 24, 1024, 384, "gelu"),
    ],
)
def test_presets(name: str, layers: int, hidden: int, positions: int, activation: str) -> None:
    config = load_config(resolve(name))
    assert (config.num_hidden_layers, config.hidden_size, config.max_position_embeddings) == (layers, hidden, positions)
    assert config.hidden_act == activation
    with pytest.raises(BigqaError, match=f"{positions} positions"):
        check_lengths(config, positions + 1)


def test_the_large_preset_has_330_million_parameters() -> None:
    with torch.device("meta"):
        source = resolve("enliple-large-v1")
        model = load_model(source, load_config(source))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(335e6, rel=0.02)


def test_roberta_loses_two_positions_to_its_padding() -> None:
    config = AutoConfig.for_model("roberta", max_position_embeddings=514, pad_token_id=1)
    assert usable_positions(config) == 512


def test_relative_positions_set_no_limit() -> None:
    config = AutoConfig.for_model("deberta-v2", position_biased_input=False, relative_attention=True)
    assert usable_positions(config) is None


def test_a_preset_without_vocabulary_asks_for_one() -> None:
    with pytest.raises(BigqaError, match="--tokenizer"):
        load_tokenizer(resolve("enliple-small"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "m holds no config.json: it is no model's folder"),
        (["adapter_config.json"], "it holds an adapter: merge it into its model first"),
        (["m.gguf"], "GGUF files are of llama.cpp"),
        (["checkpoint-5/config.json"], "checkpoint-5 does: name that"),
        (["config.json", "model/config.json"], r"m/config.json is not a model's config: .*; .*m/model does: name that"),
    ],
)
def test_a_folder_that_is_no_models_says_what_to_name(tmp_path: Path, files: list[str], said: str) -> None:
    for name in ("m/", *(f"m/{file}" for file in files)):
        path = tmp_path / name
        path.mkdir(parents=True) if name.endswith("/") else path.parent.mkdir(exist_ok=True)
        if not name.endswith("/"):
            path.write_text("{}", encoding="utf-8")
    with pytest.raises(BigqaError, match=said):
        load_config(resolve(str(tmp_path / "m")))


def test_a_file_of_weights_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BigqaError, match="is a file of weights: name the folder"):
        resolve(str(tmp_path / "model.safetensors"))


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(BigqaError, match="enliple-large-v2"):
        resolve("enliple-huge")


def test_a_model_type_without_a_qa_head_is_named(tmp_path: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    source = resolve(str(tmp_path / "config.json"))
    with pytest.raises(BigqaError, match="vit have no question-answering head"):
        load_model(source, load_config(source))


def test_hangul_stays_whole_and_cased(shared: Path) -> None:
    tokenizer = load_tokenizer(
        resolve("enliple-large-v1", tokenizer=str(shared / "data" / "vocab" / "kobigbird_vocab.txt"))
    )
    assert tokenizer.tokenize("한국어 BERT") and "[UNK]" not in tokenizer.tokenize("한국어 BERT")
    assert tokenizer.tokenize("BERT") != tokenizer.tokenize("bert")
