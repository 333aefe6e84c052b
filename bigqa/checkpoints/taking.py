"""A checkpoint's model, with what its optimizer knew, as other libraries take it. In: a run, a step. Out: `Kept`.

The model is the run's own, made as for a resume; the checkpoint's weights are copied over it. Optimizers of torch know
parameters by their places in a list: here it is the model's own order, in groups with and without weight decay, as
the Trainer's; or in one group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine import adapters
from bigqa.engine.layers import freeze
from bigqa.engine.loop import checkpoint
from bigqa.engine.optim.optimizers import BETAS, rate_at, undecayed_names
from bigqa.engine.optim.precision import DTYPES, cast
from bigqa.engine.optim.update import State
from bigqa.errors import BigqaError
from bigqa.files import read_json
from bigqa.language import tr
from bigqa.run.inputs import model_and_tokenizer
from bigqa.run.job import Job, job_of
from bigqa.settings import Settings, read_settings


@dataclass(frozen=True)
class Layout:
    """Which parameters are trained, in what order and groups."""

    shapes: Mapping[str, torch.Size]
    groups: Sequence[tuple[float, Sequence[str]]]
    """Weight decay, and the names that it is for."""

    @property
    def order(self) -> list[str]:
        """Return the names, as an optimizer counts them."""
        return [name for _, names in self.groups for name in names]


@dataclass(frozen=True)
class Kept:
    """A run as it was after a step. The model's own weights are the checkpoint's."""

    settings: Settings
    job: Job
    model: Any
    tokenizer: Any
    step: int
    state: State
    layout: Layout

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return what AdamW is given, as it is in the step that follows."""
        settings = self.settings
        plan = read_json(settings.out / "plan.json", tr("the run's plan"))
        steps = int(plan.get("steps") or self.step) if isinstance(plan, dict) else self.step
        warmup = round(settings.warmup * steps) if settings.warmup_steps is None else settings.warmup_steps
        rate = settings.lr * rate_at(settings.schedule, self.step, steps, warmup)
        return {"lr": rate, "initial_lr": settings.lr, "betas": BETAS, "eps": settings.adam_eps}


def settings_of(run: Path) -> Settings:
    """Return a run's settings, with the folder where it lies now. Raises: BigqaError."""
    if not (run / "config.json").is_file():
        raise BigqaError(tr("{run} is no run's folder: there is no config.json", run=run))
    return read_settings(run / "config.json").model_copy(update={"out": run})


def take(path: Path, *, one_group: bool = False) -> Kept:
    """Return what a checkpoint holds, in the run's own model. Raises: BigqaError where it does not fit it."""
    settings = settings_of(path.parent.parent)
    found = checkpoint.load(path)
    job, model, tokenizer = model_of(settings)
    layout = layout_of(model, settings, one_group=one_group)
    other = set(found.state.weights) ^ set(layout.shapes)
    if other:
        raise BigqaError(
            tr("the checkpoint is of another model: {other} is in one and not in the other", other=min(other))
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in layout.shapes:
                parameter.copy_(found.state.weights[name])
    return Kept(settings, job, model, tokenizer, found.step, found.state, layout)


def model_of(settings: Settings) -> tuple[Job, nn.Module, Any]:
    """Return a run's task, its model in host memory with the parameters that it trains, and its tokenizer."""
    job = job_of(settings)
    made = model_and_tokenizer(settings, job)
    model = made.loaded.model
    if settings.strategy is not None:
        adapters.apply(model, settings.strategy.adapters)
        cast(model, DTYPES[settings.strategy.precision])  # what is not trained stays as the run has it
    if settings.freeze_layers is not None:
        freeze(model, settings.freeze_layers)
    return job, model.float(), made.tokenizer


def layout_of(model: nn.Module, settings: Settings, *, one_group: bool) -> Layout:
    """Return the order and groups of a model's trained parameters."""
    undecayed = undecayed_names(model)
    trained = {name: one.shape for name, one in model.named_parameters() if one.requires_grad}
    if one_group:
        return Layout(trained, [(settings.weight_decay, list(trained))])
    decayed = [name for name in trained if name not in undecayed]
    rest = [name for name in trained if name in undecayed]
    return Layout(trained, [(settings.weight_decay, decayed), (0.0, rest)])


def check_full(settings: Settings, form: str) -> None:
    """Refuse adapters where only whole models have a form. Raises: BigqaError."""
    if settings.strategy is not None and settings.strategy.adapters != "none":
        raise BigqaError(tr("this run trains adapters, which have no place in the form of {form}", form=form))


def checked(tensors: Mapping[str, Tensor], layout: Layout, where: Path, kind: str) -> dict[str, Tensor]:
    """Return a tensor of each trained parameter, in fp32. Raises: BigqaError where one is missing or of another shape.

    `kind`: what it is of the parameter, in the field's own word.
    """
    for name, shape in layout.shapes.items():
        if name not in tensors:
            raise BigqaError(tr("{where} has no {kind} of {name}", where=where, kind=kind, name=name))
        if tensors[name].shape != shape:
            found = tuple(tensors[name].shape)
            raise BigqaError(
                tr(
                    "{where}: {kind} of {name} is {found}, and the run's model has {shape}",
                    where=where, kind=kind, name=name, found=found, shape=tuple(shape),
                )
            )  # fmt: skip
    return {name: tensors[name].to(torch.float32).contiguous() for name in layout.shapes}
