"""The DeepSpeed files are what the trainer makes, are explained field by field, and are what DeepSpeed reads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bigqa.configs import FOLDER as CONFIGS
from bigqa.engine.zero import deepspeed_config
from bigqa.strategy import STRATEGIES

FOLDER = CONFIGS / "deepspeed"
FILES = sorted(FOLDER.glob("*.json"))
ROWS = [name for name, row in STRATEGIES.items() if row.needs_deepspeed and "recompute" not in name]


def test_there_is_a_file_for_each_strategy() -> None:
    assert {file.stem for file in FILES} == {name.replace("-", "_") for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_the_file_is_what_the_trainer_makes(name: str) -> None:
    found = json.loads((FOLDER / f"{name.replace('-', '_')}.json").read_text(encoding="utf-8"))
    assert found == deepspeed_config(STRATEGIES[name], clip=1.0, global_batch=16, micro_batch=16, world_size=1)


def keys(value: Any) -> set[str]:
    if not isinstance(value, dict):
        return set()
    return set(value) | set().union(*(keys(inner) for inner in value.values()), set())


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_field_is_explained_and_known(file: Path) -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.config")
    config = json.loads(file.read_text(encoding="utf-8"))
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`([^`]*)`", readme)))) | {"zero_optimization"}
    parts = {"offload_optimizer", "offload_param", "nvme_path", "device", "pin_memory", "enabled"}
    fields = keys(config) - parts - keys(config.get("aio", {}))
    assert fields <= explained, fields - explained
    zero.DeepSpeedZeroConfig(**config["zero_optimization"])  # refuses a field that it does not know


def test_batches_make_up_the_global_batch() -> None:
    config = deepspeed_config(STRATEGIES["zero2"], clip=1.0, global_batch=16, micro_batch=3, world_size=2)
    assert config["train_micro_batch_size_per_gpu"] == 3 and config["gradient_accumulation_steps"] == 3


def test_fp16_is_scaled_as_torch_scales_it() -> None:
    strategy = STRATEGIES["zero2"].model_copy(update={"precision": "fp16"})
    config = deepspeed_config(strategy, clip=0.5, global_batch=8, micro_batch=4, world_size=2)
    theirs = torch.amp.GradScaler("cpu")
    assert 2 ** config["fp16"]["initial_scale_power"] == theirs._init_scale
    assert config["fp16"]["loss_scale_window"] == theirs.get_growth_interval()
    # 0: the scale moves; a step that overflows lowers it at once, and never below one.
    assert (config["fp16"]["loss_scale"], config["fp16"]["hysteresis"], config["fp16"]["min_loss_scale"]) == (0, 1, 1)
    assert config["fp16"]["enabled"] and "bf16" not in config and config["gradient_clipping"] == 0.5
