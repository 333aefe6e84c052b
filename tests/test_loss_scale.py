"""fp16's loss scale and the steps that it skipped: kept by every strategy, and in every change between them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from forked import in_processes
from transformers import BertConfig, BertForQuestionAnswering

from bigqa.engine.build import build
from bigqa.engine.loop.step import Parts
from bigqa.engine.optim.scaling import GROWTH_INTERVAL
from bigqa.engine.processes import Processes
from bigqa.settings import Settings
from bigqa.strategy import Strategy
from bigqa.tasks.qa.task import QuestionAnswering

deepspeed = pytest.importorskip("deepspeed")
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"precision": "fp16"},
    **{f"zero{stage}": {"precision": "fp16", "zero_stage": stage} for stage in (1, 2, 3)},
    "released": {"precision": "bf16", "release": True},
    "bf16": {"precision": "bf16"},
}
IN_FP16 = [name for name, axes in ROWS.items() if axes["precision"] == "fp16"]
LOSES_NOTHING = {"scaler": {"scale": 32768.0, "good_steps": 2, "skipped": 1}}


def parts_of(name: str, processes: Processes, out: Path) -> Parts:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    strategy = Strategy(device="cpu", **ROWS[name])
    settings = Settings(
        model="tiny", train_file=Path("train.json"), out=out, strategy=strategy, precision=strategy.precision,
        global_batch=2, micro_batch=2, seq_len=16, max_query_length=4, doc_stride=4, lr=1e-2, clip=0.1,
    )  # fmt: skip
    return build(BertForQuestionAnswering(config), QuestionAnswering(0, True), settings, processes)


def step(parts: Parts, factor: float = 1.0) -> float:
    rows: list[Any] = [
        {"input_ids": list(range(4, 20)), "token_type_ids": [0] * 16, "start": 1 + number, "end": 3}
        for number in range(2)
    ]
    with parts.update.micro_batch(is_last=True):
        parts.update.backward(parts.task.loss_sum(parts.model, parts.task.collate(rows)) / 2 * factor)
    return float(parts.update.step())


def counts(parts: Parts) -> set[float]:
    """Return how many steps the optimizer has counted."""
    optimizer: Any = parts.update.optimizer if "optimizer" in vars(parts.update) else parts.model.optimizer.optimizer
    singles = optimizer.single.values() if hasattr(optimizer, "single") else [optimizer]
    return {float(state["step"]) for one in singles for state in one.state.values()}


def work(processes: Processes, out: Path) -> dict[str, Any]:
    accelerator: Any = deepspeed.get_accelerator()
    type(accelerator).is_fp16_supported = lambda self: True  # a CPU without instructions for it takes longer, no more
    found: dict[str, Any] = {"extras": {}, "counts": {}, "norms": {}, "grown": {}}
    kept = {}
    for name in IN_FP16:
        parts = parts_of(name, processes, out)
        found["norms"][name] = [step(parts, factor) for factor in (1e6, 1.0, 2.0)]
        kept[name] = parts.update.state()
        parts.update.scaling.good_steps = GROWTH_INTERVAL - 1
        found["grown"][name] = (step(parts), parts.update.scaling.scale, step(parts))
    for name in ROWS:
        parts = parts_of(name, processes, out)
        for before, state in kept.items():
            parts.update.load(state, 3)
            found["extras"][before, name] = {"scaler": dict(parts.update.state().extras)["scaler"]}
            found["counts"][before, name] = (counts(parts), parts.update.skipped)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process in which each strategy in fp16 skips a step, and hands its state over to each."""
    out = tmp_path_factory.mktemp("run")
    one: dict[str, Any]
    (one,) = in_processes(lambda processes: work(processes, out), 1)
    return one


def test_every_change_keeps_the_scale_and_what_was_skipped(found: dict[str, Any]) -> None:
    assert len(found["extras"]) == len(IN_FP16) * len(ROWS)
    assert {pair: extras for pair, extras in found["extras"].items() if extras != LOSES_NOTHING} == {}


def test_a_skipped_step_is_none_of_adams(found: dict[str, Any]) -> None:
    assert {pair: one for pair, one in found["counts"].items() if one != ({2.0}, 1)} == {}


@pytest.mark.parametrize("name", IN_FP16[1:])
def test_norms_are_those_of_the_plain_update(found: dict[str, Any], name: str) -> None:
    assert found["norms"][name][1:] == pytest.approx(found["norms"]["plain"][1:], rel=1e-2)


@pytest.mark.parametrize("name", IN_FP16)
def test_a_step_after_which_the_scale_doubles_is_a_step_as_any(found: dict[str, Any], name: str) -> None:
    """DeepSpeed takes the scale off the gradients when its own has doubled already: they would be halved."""
    before, scale, after = found["grown"][name]
    assert scale == 65536.0
    assert (before, after) == pytest.approx(found["grown"]["plain"][::2], rel=1e-2)
