"""Configurations, tokenizers and weights that are spoiled, and what reads them; see `fuzzing`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from fuzzing import Kind, Spoiling, damaged, dumped, spoiled, spoilings
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)  # fmt: skip

from bigqa.models.sources import check_lengths, load, load_config, load_tokenizer, resolve
from bigqa.plan.planner import estimator_for
from bigqa.run.prediction import kind_and_options
from bigqa.run.together import check_together
from bigqa.sample import FOLDER

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
}
CONFIGS = [
    json.loads(made(**SIZES).to_json_string(use_diff=False))
    for made in (BertConfig, RobertaConfig, ElectraConfig, DebertaV2Config, ModernBertConfig)
]


def _of_config(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    base = CONFIGS[which % len(CONFIGS)]
    (folder / "config.json").write_bytes(
        damaged(dumped(base), drawn) if which % 7 == 0 else dumped(spoiled(base, drawn))
    )

    def read() -> None:
        config = load_config(resolve(str(folder / "config.json")))
        check_lengths(config, 64)
        assert estimator_for(config).num_parameters >= 0

    return read


def _of_tokenizer(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    _saved(folder, names[:2] if which % 3 < 2 else ("vocab.txt", "tokenizer_config.json"))
    name = names[which % 3]
    content = (folder / name).read_bytes()
    is_json = name.endswith(".json") and which % 7
    (folder / name).write_bytes(dumped(spoiled(json.loads(content), drawn)) if is_json else damaged(content, drawn))
    source = resolve("bert-base", tokenizer=str(folder))

    def read() -> None:
        check_together(source, load_tokenizer(source), load_config(source))

    return read


def _saved(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.copy(_model() / name, folder / name)


def _model(made: list[Path] = []) -> Path:  # noqa: B006 - it is made once
    """Return the folder of a whole model with its tokenizer."""
    if not made:
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="bigqa-fuzz-"))
        tokenizer = load_tokenizer(resolve("tiny"))
        BertForQuestionAnswering(BertConfig(**SIZES | {"vocab_size": len(tokenizer)})).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shutil.copy(FOLDER / "vocab.txt", folder)
        made.append(folder)
    return made[0]


def _of_weights(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    _saved(folder, ("config.json",))
    file = folder / "model.safetensors"
    match which % 4:
        case 0:
            file.write_bytes(damaged((_model() / file.name).read_bytes(), drawn))
        case 1:
            save_file({f"{number}": torch.zeros(number + 1) for number in range(which % 5)}, file)
        case 2:
            file.write_bytes(damaged(b"version https://git-lfs.github.com/spec/v1\n", drawn))
        case _:
            index = {"metadata": {}, "weight_map": {"qa_outputs.bias": "model.safetensors", "x": "no.safetensors"}}
            (folder / "model.safetensors.index.json").write_bytes(dumped(spoiled(index, drawn)))
    source = resolve(str(folder))
    return lambda: load(source, load_config(source), require_head=bool(which % 2))


def _of_notes(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    notes = {"schema": 1, "task": "qa", "options": {"seq_len": 128, "doc_stride": 32, "null_threshold": 0.5}}
    (folder / "bigqa.json").write_bytes(dumped(spoiled(notes, drawn)) if which % 4 else damaged(dumped(notes), drawn))
    return lambda: kind_and_options(folder, BertConfig(**SIZES))


KINDS: dict[str, Kind] = {
    "config": (_of_config, spoilings(2)),
    "tokenizer": (_of_tokenizer, spoilings(2)),
    "weights": (_of_weights, spoilings()),
    "notes": (_of_notes, spoilings()),
}
