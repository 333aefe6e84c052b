"""Puts the streamed step together, for the trainer and for the predictor. In: a model. Out: passes and an update."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.optim.optimizers import undecayed_names
from bigqa.engine.optim.precision import DTYPES
from bigqa.engine.optim.scaling import LossScaler
from bigqa.engine.stream.host_steps import steps_of
from bigqa.engine.stream.layers import Layers
from bigqa.engine.stream.link import link_to
from bigqa.engine.stream.passes import LayerPasses
from bigqa.engine.stream.placing import Placed
from bigqa.engine.stream.shelf import shelf_of
from bigqa.engine.stream.sums import Sums
from bigqa.engine.stream.update import StreamedUpdate
from bigqa.strategy import Strategy
from bigqa.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the update is told."""

    eps: float
    clip: float
    weight_decay: float


def streamed(
    model: nn.Module, task: Task, strategy: Strategy, device: torch.device, rates: Rates, group: Any = None,
    folder: Path | None = None, made: Mapping[str, Tensor] | None = None,
) -> tuple[LayerPasses, StreamedUpdate]:  # fmt: skip
    """Take a model in host memory apart, whose modules have been changed.

    `group`: of several processes, for tensors in host memory; this is the first thing that they do with it.
    `folder`: on a disk, for what the strategy has there; `made`: fp32 values of weights that the model has without
    data, of which one is asked for at a time.
    Raises: BigqaError where it cannot be streamed.
    """
    layers, shelf = Layers(model, task), shelf_of(strategy, link_to(device), model, folder)
    undecayed = undecayed_names(model)
    steps = steps_of(strategy, shelf, eps=rates.eps)
    staged = shelf.weights_on_disk and strategy.device == "cuda"
    placed = Placed(
        model, layers, shelf, undecayed, DTYPES[strategy.precision], waits=steps.waits, staged=staged,
        made=made,
    )  # fmt: skip
    for weight in placed.weights.values():
        steps.make_states(weight)
    passes = LayerPasses(model, layers, placed.slots, placed.tables, placed.backward_of)
    sums = placed.tables.sums = Sums(group)
    placed.let_go = passes.borders.let_go
    scaler = LossScaler() if strategy.precision == "fp16" else None
    update = StreamedUpdate(
        placed, passes, steps, clip=rates.clip, weight_decay=rates.weight_decay, scaler=scaler, sums=sums
    )
    return passes, update
