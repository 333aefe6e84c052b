"""Writes the DeepSpeed configurations, as the trainer makes them. Run: `python -m bigqa.configs.make`."""

import json
from pathlib import Path

from bigqa.configs import FOLDER
from bigqa.engine.zero import deepspeed_config
from bigqa.strategy import STRATEGIES

ROWS = ("zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "zero3-nvme")


def text_of(name: str) -> str:
    """Return a strategy's configuration for a global batch of 16 on one GPU."""
    config = deepspeed_config(STRATEGIES[name], clip=1.0, global_batch=16, micro_batch=16, world_size=1)
    return json.dumps(config, indent=2) + "\n"


def file_of(name: str) -> Path:
    """Return where a strategy's configuration is."""
    return FOLDER / "deepspeed" / f"{name.replace('-', '_')}.json"


if __name__ == "__main__":
    for row in ROWS:
        file_of(row).write_text(text_of(row), encoding="utf-8")
