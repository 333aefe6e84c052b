"""One type of model, planned and trained. In: its name. Out: losses, resident memory, rows; or a `BigqaError`."""

import ctypes
import gc
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering

from benchmarks.model_types import FEW, RATE, SHORT, STEPS, TOKENS, WINDOWS
from benchmarks.small_types import VOCABULARY, small
from bigqa.engine.attention import kernels as attention
from bigqa.engine.attention.packing import can_pack
from bigqa.engine.build import change, make_update
from bigqa.engine.loop.meter import MemoryMeter, peak_resident_bytes
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.optim.optimizers import make_optimizer, parameter_groups, undecayed_names
from bigqa.errors import BigqaError, in_a_line
from bigqa.models.sources import first_position
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES, Strategy
from bigqa.tasks.base import Row
from bigqa.tasks.qa.task import EXAMPLE_QUESTION, QuestionAnswering, separator_for

torch.set_num_threads(1)  # a fork has none of its parent's
CLEAR_PEAK = "5"
"""Written to Linux's `clear_refs`, lets the peak of resident memory begin anew."""
ORDINARY = 5
"""Tokens before this one are special."""


def planned(kind: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Return what is predicted of a type: whether windows are packed, its rows, and the step that `measured` takes.

    And how much processor time the planning of the rows takes, in seconds.
    """
    began = time.process_time()
    estimator = estimator_for(small(kind))
    estimator.prepare()
    rows: dict[str, str | None] = {}
    for name in names:
        try:
            estimator.estimate(STRATEGIES[name], FEW, SHORT, accumulating=True)
            rows[name] = None
        except BigqaError as error:
            rows[name] = in_a_line(error)
    took_s = round(time.process_time() - began, 2)
    step = estimator.footprint(_on_cpu({}), WINDOWS, TOKENS, accumulating=False)
    found = {"planned": rows, "planned_s": took_s, "predicts_packed": estimator.packs}
    return found | {"predicted_bytes": step.allocated_bytes}


def learned(kind: str, axes: dict[str, Any]) -> list[float]:
    """Return the loss of the first and of the last step on the same few windows."""
    parts = _parts(kind, _on_cpu(axes))
    batch = _batch(parts, FEW, SHORT)
    losses = [float(train_step(parts, [batch], FEW)[0]) for _ in range(STEPS)]
    return [losses[0], losses[-1]]


def measured(kind: str) -> dict[str, Any]:
    """Return how far resident memory rises while a model is made and trained on full windows."""
    meter = MemoryMeter(torch.device("cpu"))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what other steps left in the heap would be filled first, and not be seen
    Path("/proc/self/clear_refs").write_text(CLEAR_PEAK, encoding="ascii")
    before = meter.now_bytes()
    parts = _parts(kind, _on_cpu({}))
    batch = _batch(parts, WINDOWS, TOKENS)
    for _ in range(2):  # the optimizer's states are there from the second
        train_step(parts, [batch], WINDOWS)
    return {"packs": parts.packs, "rise_bytes": peak_resident_bytes() - before}


def _on_cpu(axes: dict[str, Any]) -> Strategy:
    return Strategy.model_validate({"device": "cpu", "precision": "fp32"} | axes)


def _parts(kind: str, strategy: Strategy) -> Parts:
    """As `engine.build` puts a step together."""
    config = small(kind)
    torch.manual_seed(0)
    try:
        model: nn.Module = AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32).train()
    except Exception as error:
        raise BigqaError(f"it cannot be made: {in_a_line(error)}") from error
    types = getattr(config, "type_vocab_size", 0) > 1
    separator = separator_for(model, _separator_of(config))
    task = QuestionAnswering(getattr(config, "pad_token_id", 0) or 0, types, first_position(config), separator)
    packs = attention.use(model) and can_pack(model, task, SHORT)
    undecayed = undecayed_names(model)
    weights = change(model, strategy)
    update = make_update(
        model,
        strategy,
        weights,
        lambda groups: make_optimizer(strategy, groups, lr=RATE, eps=1e-8),
        groups=parameter_groups(weights.masters, undecayed, 0.01),
        clip=1.0,
    )
    return Parts(model=model, update=update, task=task, packs=packs)


def _separator_of(config: Any) -> int:
    return getattr(config, "sep_token_id", None) or 0


def _batch(parts: Parts, count: int, tokens: int) -> dict[str, Tensor]:
    """Return full windows: a question as long as is predicted for, a separator, a context."""
    config: Any = parts.model.config
    drawn = torch.Generator().manual_seed(1)
    separator = _separator_of(config)
    vocabulary = getattr(config, "vocab_size", VOCABULARY)
    question = min(EXAMPLE_QUESTION, tokens // 2)
    rows: list[Row] = []
    for number in range(count):
        ids = torch.randint(ORDINARY, vocabulary, (tokens,), generator=drawn).tolist()
        ids[question] = separator
        start = question + 1 + number % (tokens - question - 2)
        rows.append({"input_ids": ids, "token_type_ids": [0] * tokens, "start": start, "end": start + 1})
    made: Any = parts.task
    batch: dict[str, Tensor] = (made.pack if parts.packs else made.collate)(rows)
    return batch
