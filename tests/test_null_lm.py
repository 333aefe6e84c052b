"""A language model's step with torch's own CUDA build and allocator, beside its prediction: logits are never whole."""

import json
from typing import Any

import pytest
from null_gpu import ROOT, on_null_gpu
from transformers import AutoConfig

from benchmarks.null_cells import card_of
from bigqa.memory.cards import card_for
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES
from bigqa.tasks.registry import kind_of

CONFIG = ROOT / "tests" / "configs" / "Qwen3-0.6B.json"
WORDS = (32_000, 151_936)
BATCH, LENGTH = 4, 512
ROWS = ("plain", "recompute", "lora-recompute")
PROGRAM = """
import ctypes, json, sys, tempfile
from pathlib import Path
from unittest.mock import patch
sys.path.insert(0, ROOT)
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from benchmarks import null_worker
from benchmarks.null_host import unfilled
from bigqa.bench.report import Case
from bigqa.bench.worker import settings_of, training_of
from bigqa.engine import build
from bigqa.engine.loop.fit import fit
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.processes import Processes
from bigqa.strategy import STRATEGIES, with_low_precision

def measure(words, row):
    ctypes.CDLL("libcuda.so.1").null_on_read(null_worker._yes)
    config = AutoConfig.for_model(**json.loads(Path(CONFIG).read_text()) | {"vocab_size": words})
    axes = with_low_precision(STRATEGIES[row], "bf16")
    case = Case(model=CONFIG, strategy=row, axes=axes, seq_len=LENGTH, micro_batch=BATCH, global_batch=BATCH, steps=0)
    with tempfile.TemporaryDirectory() as folder, patch.object(build, "can_pack", lambda *args: True):
        settings = settings_of(case, Path(folder)).model_copy(update={"task": "lm"})
        processes = Processes("cuda")
        with unfilled():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            training = training_of(case, settings, processes, Silent(), model)
        fit(training)
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}

null_worker.import_libraries((8, 0))
print(json.dumps([null_worker.in_a_fork(measure, words, row) for row in ROWS for words in WORDS]))
"""


CELLS = [(row, words) for row in ROWS for words in WORDS]


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, int], tuple[Any, dict[str, int]]]:
    """Return what is predicted and what was measured, by row and words."""
    program = PROGRAM.replace("ROOT", repr(str(ROOT))).replace("CONFIG", repr(str(CONFIG)))
    for name, value in {"ROWS": ROWS, "WORDS": WORDS, "LENGTH": LENGTH, "BATCH": BATCH}.items():
        program = program.replace(name, json.dumps(value))
    card, values, found = card_of("A100-80"), json.loads(CONFIG.read_text()), {}
    for (row, words), measured in zip(CELLS, on_null_gpu(program), strict=True):
        assert "allocated" in measured, measured
        estimator = estimator_for(AutoConfig.for_model(**values | {"vocab_size": words}), kind_of("lm"))
        asked: dict[str, Any] = {"accumulating": False, "card": card_for(card.name, card.capability), "whole": True}
        found[row, words] = estimator.estimate(STRATEGIES[row], BATCH, LENGTH, **asked), measured
    return found


@pytest.mark.nullgpu
@pytest.mark.slow
def test_what_is_allocated_is_predicted(cells: Any) -> None:
    off = {cell: one.allocated_bytes / measured["allocated"] - 1 for cell, (one, measured) in cells.items()}
    assert all(abs(share) < 0.01 for share in off.values()), off


@pytest.mark.nullgpu
@pytest.mark.slow
@pytest.mark.xfail(reason="recompute with 151,936 words: 5.0% less is predicted than is reserved")
def test_what_is_reserved_is_predicted(cells: Any) -> None:
    off = {cell: one.reserved_bytes / measured["reserved"] - 1 for cell, (one, measured) in cells.items()}
    assert all(abs(share) < 0.02 for share in off.values()), off


@pytest.mark.nullgpu
@pytest.mark.slow
def test_frozen_words_cost_their_own_bytes_and_no_logits(cells: Any) -> None:
    """In bf16; of the logits of all tokens, in fp32, one copy alone would be four times as much."""
    few, many = (cells["lora-recompute", words][1]["allocated"] for words in WORDS)
    hidden = json.loads(CONFIG.read_text())["hidden_size"]
    assert many - few == pytest.approx((WORDS[1] - WORDS[0]) * hidden * 2, rel=0.05)
