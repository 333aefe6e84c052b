"""Every type of model that the library has a question-answering head for: planned, trained, or refused in a line."""

import pytest
from hand_made import RATES
from transformers import AutoConfig

from bigqa.errors import BigqaError
from bigqa.machine.hardware import planned_gpu
from bigqa.plan.candidates import Workload
from bigqa.plan.machine import Machine
from bigqa.plan.planner import Planner, estimator_for
from bigqa.units import GIB

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 431}


def test_a_row_that_cannot_be_had_is_a_row_that_says_why() -> None:
    """FNet's Fourier transform is of fp32: the other precision ended the whole table."""
    known = {"host_bytes": 64 * GIB, "host_cores": 8, "cpu_bf16": True, "rates": {"cpu": RATES}}
    machine = Machine(gpu=planned_gpu("A100-40", None), **known)
    config = AutoConfig.for_model("fnet", **SMALL, max_position_embeddings=130)
    planner = Planner(estimator_for(config), Workload(seq_len=64, global_batch=2), machine)
    rows = {row.name: row for row in planner.candidates(["plain", "plain-fp32", "cpu-fp32"])}
    assert {name for name, row in rows.items() if row.verdict == "fits"} == {"plain-fp32", "cpu-fp32"}
    assert rows["plain"].verdict == "not possible" and "BFloat16" in rows["plain"].reason


def test_a_model_that_wants_more_than_text_is_refused_in_a_line() -> None:
    config = AutoConfig.for_model("lxmert", **SMALL, num_attention_heads=4, l_layers=1, x_layers=1, r_layers=1)
    with pytest.raises(BigqaError, match="windows of text alone: `visual_feats`"):
        estimator_for(config).prepare()
