"""The DeepSpeed files are what the trainer makes, are explained field by field, and are what DeepSpeed reads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bigqa.configs import FOLDER as CONFIGS
from bigqa.engine.sharding import deepspeed_config
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
