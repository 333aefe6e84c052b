"""Runs of seconds within the test's own process. In: options. Out: run folders.

Windows are short and full, so that a micro-batch of so many windows is a forward pass of so many, and no more.
"""

import json
from pathlib import Path
from typing import Any

from bigqa.plan.ladder import AGAIN
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import settings_from
from bigqa.sample import FOLDER

STEPS, BATCH = 6, 8
WORDS: dict[str, Any] = {
    "model": "tiny",
    "train_file": FOLDER / "train.json",
    "limit": 32,
    "device": "cpu",
    "max_steps": STEPS,
    "global_batch": BATCH,
    "micro_batch": BATCH,
    "seq_len": 64,
    "doc_stride": 16,
    "max_query_length": 24,
    "precision": "fp32",
    "dropout": 0.0,
    "save_every": 2,
    "check": False,
}


def options(out: Path, **more: Any) -> dict[str, Any]:
    return WORDS | {"out": out} | more


def train(out: Path, **more: Any) -> int:
    """Run to the end, as a launcher does; return how often the run was taken up again."""
    settings, resume = settings_from(options(out, **more), None), False
    for starts in range(10):
        try:
            fine_tune(settings, resume=resume)
        except SystemExit as stop:
            assert stop.code == AGAIN
            settings, resume = settings_from({}, out), True
        else:
            return starts
    raise AssertionError("the run never ends")


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
