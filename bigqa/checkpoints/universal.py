"""DeepSpeed's universal checkpoints: a folder for each parameter, whatever stage and however many processes follow.

In: what was kept, or such a folder. Out: the other of both. Written for engines with `"checkpoint":
{"load_universal": true}` and `engine.load_checkpoint(FOLDER)`. Source: `deepspeed/checkpoint/ds_to_universal.py`, and
what the engines of the three stages read.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigqa.checkpoints.accelerate import loaded
from bigqa.checkpoints.taking import Kept, Layout, check_full, checked
from bigqa.engine.optim.moments import NAMES
from bigqa.engine.optim.update import State
from bigqa.errors import BigqaError
from bigqa.language import tr

LATEST = "latest_universal"
ENGINES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""What engines read first: of stages 1 and 2, and of stage 3."""
MASTER = "fp32"
WRITTEN_BY = "0.14.5"
"""A version whose form this is, for readers that compare; where DeepSpeed is installed, its own."""


def write(kept: Kept, folder: Path) -> None:
    """Write what DeepSpeed's engines load with `load_universal`."""
    check_full(kept.settings, "DeepSpeed")
    if not kept.state.moments:
        raise BigqaError(tr("this checkpoint has no moments yet, and DeepSpeed's form wants them: take a later one"))
    tag = f"global_step{kept.step}_universal"
    (folder / LATEST).write_text(tag, encoding="utf-8")
    whole = folder / tag
    for name in kept.layout.order:
        place = whole / "zero" / name
        place.mkdir(parents=True)
        tensors = {MASTER: kept.state.weights[name]} | {k: kept.state.moments[f"{k}.{name}"] for k in NAMES}
        for kind, tensor in tensors.items():
            torch.save({"param": tensor.float().clone(), "cat_dim": 0}, place / f"{kind}.pt")
        torch.save(torch.tensor(float(kept.step)), place / "step.pt")
    torch.save(_optimizer(kept), whole / "zero" / "optimizer_state.pt")
    for name in ENGINES:
        torch.save(_engine(kept), whole / name)


def read(folder: Path, layout: Layout) -> tuple[State, int]:
    """Return weights and moments by name, and how many steps they are through. Raises: BigqaError."""
    latest = folder / LATEST
    whole = folder / latest.read_text(encoding="utf-8").strip() if latest.is_file() else folder
    if not (whole / "zero").is_dir():
        raise BigqaError(tr("{folder} is no universal checkpoint: there is no folder zero in it", folder=whole))
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in (MASTER, *NAMES)}
    for kind, tensors in parts.items():
        for name in layout.shapes:
            file = whole / "zero" / name / f"{kind}.pt"
            if file.is_file():
                found = loaded(file)
                tensor = found["param"] if isinstance(found, dict) else found
                # What stage 3 has written is flat.
                is_flat = tensor.dim() == 1 and tensor.numel() == layout.shapes[name].numel()
                tensors[name] = tensor.view(layout.shapes[name]) if is_flat else tensor
        parts[kind] = checked(tensors, layout, whole / "zero", kind)
    first = whole / "zero" / next(iter(layout.shapes)) / "step.pt"
    step = int(loaded(first)) if first.is_file() else _steps(whole)
    moments = {f"{kind}.{name}": one for kind in NAMES for name, one in parts[kind].items()}
    return State(weights=parts[MASTER], moments=moments), step


def _steps(whole: Path) -> int:
    """Return the steps that an engine counted: stage 3 writes none beside the parameters."""
    for name in ENGINES:
        if (whole / name).is_file():
            return int(loaded(whole / name)["global_steps"])
    raise BigqaError(tr("{folder} does not say after how many steps it was saved: name them with --step", folder=whole))


def _version() -> str:
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return WRITTEN_BY


def _optimizer(kept: Kept) -> dict[str, Any]:
    groups = [
        kept.hyperparameters | {"weight_decay": decay, "bias_correction": True, "params": [place]}
        for place, (decay, _) in enumerate(kept.layout.groups)
    ]
    inner = {"state": {0: {"step": kept.step}}, "param_groups": groups}
    # Stages 1 and 2 read the groups, stage 3 the optimizer's own state.
    return {"param_groups": groups, "optimizer_state_dict": inner, "ds_version": _version(), "overflow": False}


def _engine(kept: Kept) -> dict[str, Any]:
    shapes = [{name: kept.layout.shapes[name] for name in names} for _, names in kept.layout.groups]
    return {
        "module": {}, "buffer_names": [], "optimizer": None, "lr_scheduler": None, "param_shapes": shapes,
        "global_steps": kept.step, "global_samples": kept.step * kept.settings.global_batch, "skipped_steps": 0,
        "dp_world_size": 1, "mp_world_size": 1, "ds_version": _version(),
        "universal_checkpoint_info": {"universal_checkpoint_version": 0.2},
    }  # fmt: skip
