"""Files of weights: named for what they are where they are spoiled, cut short, not there, or of something else."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_weights import refusal, save_bert
from transformers import BertForQuestionAnswering


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "model")


def _links_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("nowhere")


def _called(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def _cut(size: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / "model.safetensors", size)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (_links_to_nothing, "model.safetensors is a link to nothing"),
        (_called("tf_model.h5"), "tf_model.h5 is weights of TensorFlow"),
        (_called("epoch=1.ckpt"), "epoch=1.ckpt is a checkpoint of another trainer"),
        (_called("best.safetensors"), "best.safetensors is weights under another name"),
        (_called("model-00001-of-00001.safetensors"), "a shard of weights without their index"),
        (_written(b"version https://git-lfs.github.com/spec/v1\noid"), "model.safetensors is a Git LFS pointer"),
        (_written(b""), "model.safetensors is cut short: 0 bytes"),
        (_cut(100), "model.safetensors is cut short: 100 bytes of at least"),
        (_cut(9000), "model.safetensors is cut short: 9000 bytes of at least"),
        (_written(b"\x05\0\0\0\0\0\0\0[1,2]...."), "cannot be loaded"),
    ],
)
def test_files_of_weights_are_named_for_what_they_are(folder: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(folder)
    assert said in refusal(folder)


def test_a_shard_that_is_missing_or_short_is_named(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    BertForQuestionAnswering.from_pretrained(folder).save_pretrained(shards, max_shard_size="8KB")
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    os.truncate(second, 60)
    assert f"{second} is cut short" in refusal(shards)
    first.unlink()
    assert f"lacks {first.name}, 1 of " in refusal(shards)


def test_a_pickle_of_more_than_tensors_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"a": Code()}, folder / "pytorch_model.bin")
    assert "is a pickle of more than tensors" in refusal(folder) and not (tmp_path / "ran").exists()
