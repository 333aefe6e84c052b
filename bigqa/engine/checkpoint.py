"""Checkpoints in one canonical form, whole or absent. In: weights and optimizer by name. Out: `checkpoints/step-N/`.

`weights.safetensors` holds fp32 weights by parameter name, `adam.safetensors` the two moments by parameter name,
`state.json` the step and the settings that fix data order, schedule and dropout; `checksums.json` seals the folder.
Random numbers need no state of their own: each step draws from (seed, step, rank). The form knows no strategy,
precision, device or number of processes.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigqa.engine.moments import NAMES as MOMENTS
from bigqa.engine.moments import get as get_moments
from bigqa.engine.moments import put as put_moments
from bigqa.engine.precision import Weights
from bigqa.engine.scaling import LossScaler
from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, read_json, write_error, write_json

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read whole."""

    step: int
    """Optimizer steps completed."""
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    scaler: Mapping[str, Any] | None = None


def save(
    folder: Path,
    step: int,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    scaler: LossScaler | None = None,
) -> Path:
    """Write a checkpoint of a completed step; it appears under its name only when it is whole."""
    path = folder / f"step-{step:08d}"
    moments: dict[str, Tensor] = {}
    for name, master in weights.masters.items():
        kept = get_moments(optimizer, master)
        if kept is not None:
            moments |= {f"{kind}.{name}": moment for kind, moment in zip(MOMENTS, kept, strict=True)}
    state = {"schema": SCHEMA, "step": step, "settings": dict(settings), "scaler": scaler and asdict(scaler)}
    with atomic_folder(path, replace=True) as temporary:
        try:
            save_file(_portable(weights.masters), temporary / "weights.safetensors")
            save_file(_portable(moments), temporary / "adam.safetensors")
        except SafetensorError as error:  # safetensors wraps the operating system's error in its own
            raise write_error(path, OSError(*_errno(error))) from error
        write_json(temporary / "state.json", state)
        write_json(temporary / "checksums.json", {file.name: _sha256(file) for file in sorted(temporary.iterdir())})
    return path


def keep_last(folder: Path, count: int) -> None:
    """Remove all but the newest checkpoints."""
    for path in _newest_first(folder)[count:]:
        shutil.rmtree(path, ignore_errors=True)


def load_newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest whole checkpoint; each damaged one is reported and the one before it tried."""
    for path in _newest_first(folder):
        try:
            return _load(path)
        except BigqaError as error:
            say(f"{error}; trying the checkpoint before it")
    return None


def restore(
    checkpoint: Checkpoint, weights: Weights, optimizer: torch.optim.Optimizer, scaler: LossScaler | None = None
) -> None:
    """Put a checkpoint's weights and moments in place. Raises: BigqaError where it is of another model."""
    if set(checkpoint.weights) != set(weights.masters):
        name = sorted(set(checkpoint.weights) ^ set(weights.masters))[0]
        raise BigqaError(f"the checkpoint is of another model: {name} is in one and not in the other")
    weights.load(checkpoint.weights)
    if scaler is not None and checkpoint.scaler:
        for field, value in checkpoint.scaler.items():
            setattr(scaler, field, value)
    for name, master in weights.masters.items():
        if f"exp_avg.{name}" not in checkpoint.moments:
            continue
        first, second = (checkpoint.moments[f"{kind}.{name}"] for kind in MOMENTS)
        put_moments(optimizer, master, (first, second), checkpoint.step - (scaler.skipped if scaler else 0))


def _load(path: Path) -> Checkpoint:
    checksums = read_json(path / "checksums.json", "the checkpoint's checksums")
    for name, expected in checksums.items():
        file = path / name
        if not file.is_file() or _sha256(file) != expected:
            raise BigqaError(f"the checkpoint {path} is damaged: {name} does not match its checksum")
    state = read_json(path / "state.json", "the checkpoint's state")
    if state.get("schema") != SCHEMA:
        raise BigqaError(f"the checkpoint {path} has schema {state.get('schema')}, this bigqa reads {SCHEMA}")
    return Checkpoint(
        step=state["step"],
        weights=load_file(path / "weights.safetensors"),
        moments=load_file(path / "adam.safetensors"),
        settings=state["settings"],
        scaler=state.get("scaler"),
    )


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Tied weights share memory, which safetensors refuses; contiguous copies on the CPU do not.
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu", torch.float32).contiguous()
        out[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return out


def _errno(error: SafetensorError) -> tuple[int, str]:
    text = str(error)
    _, _, code = text.partition("os error ")
    digits = code.split(")")[0]
    return (int(digits), text) if digits.isdigit() else (0, text)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
