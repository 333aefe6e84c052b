"""Checkpoints as `accelerator.save_state` writes them. In: what was kept, or such a folder. Out: the other of both.

`model.safetensors` and `optimizer.bin` for one model and one optimizer (torch's AdamW). Source of the names:
https://huggingface.co/docs/accelerate/usage_guides/checkpoint
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor

from bigqa.checkpoints.taking import Kept, Layout, check_full, checked
from bigqa.engine.optim.moments import NAMES
from bigqa.engine.optim.update import State
from bigqa.errors import BigqaError, in_a_line
from bigqa.language import tr

MODEL, OPTIMIZER = "model.safetensors", "optimizer.bin"


def write(kept: Kept, folder: Path) -> None:
    """Write what `accelerator.load_state` reads."""
    check_full(kept.settings, "Accelerate")
    save_model(kept.model, str(folder / MODEL), metadata={"format": "pt"})
    torch.save(optimizer_state(kept), folder / OPTIMIZER)


def optimizer_state(kept: Kept) -> dict[str, Any]:
    """Return the state of torch's AdamW, whose parameters have numbers for names."""
    number = {name: place for place, name in enumerate(kept.layout.order)}
    states = {}
    if kept.state.moments:
        for name, place in number.items():
            states[place] = {"step": torch.tensor(float(kept.step))} | {
                kind: kept.state.moments[f"{kind}.{name}"].clone() for kind in NAMES
            }
    groups = [
        kept.hyperparameters | {"weight_decay": decay, "amsgrad": False, "maximize": False, "foreach": None,
                                "capturable": False, "differentiable": False, "fused": None,
                                "decoupled_weight_decay": True, "params": [number[name] for name in names]}
        for decay, names in kept.layout.groups
    ]  # fmt: skip
    return {"state": states, "param_groups": groups}


def read(folder: Path, layout: Layout) -> tuple[State, int]:
    """Return weights and moments by name, and how many steps they are through. Raises: BigqaError."""
    weights = checked(_weights(folder / MODEL), layout, folder / MODEL, "weight")
    found = loaded(folder / OPTIMIZER)
    groups, states = (found.get(name) if isinstance(found, dict) else None for name in ("param_groups", "state"))
    if not isinstance(groups, list) or not isinstance(states, dict):
        raise BigqaError(tr("{file} is no optimizer's state", file=folder / OPTIMIZER))
    numbers = [number for group in groups for number in group["params"]]
    order = list(layout.shapes) if len(groups) == 1 else layout.order
    if len(numbers) != len(order) or any(number not in states for number in numbers):
        raise BigqaError(
            tr(
                "{file} is of {found} parameters in {groups} groups, and the run trains {count}",
                file=folder / OPTIMIZER, found=len(numbers), groups=len(groups), count=len(order),
            )
        )  # fmt: skip
    by_name = {name: states[number] for name, number in zip(order, numbers, strict=True)}
    moments: dict[str, Tensor] = {}
    for kind in NAMES:
        of_kind = {name: one[kind] for name, one in by_name.items() if kind in one}
        moments |= {f"{kind}.{name}": one for name, one in checked(of_kind, layout, folder / OPTIMIZER, kind).items()}
    return State(weights=weights, moments=moments), int(next(iter(by_name.values()))["step"])


def loaded(file: Path) -> Any:
    """Read a file of torch's of which nothing is executed. Raises: BigqaError."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BigqaError(tr("{file} is not there", file=file)) from None
    except Exception as error:  # whatever a broken pickle raises
        raise BigqaError(tr("{file} cannot be read: {error}", file=file, error=in_a_line(error))) from None


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise BigqaError(tr("{file} cannot be read: {error}", file=file, error=in_a_line(error))) from None
