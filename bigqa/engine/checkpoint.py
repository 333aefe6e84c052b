"""Checkpoints in one canonical form, whole or absent. In: weights and optimizer by name. Out: `checkpoints/step-N/`.

`weights.safetensors` holds fp32 weights by parameter name, `adam.safetensors` the two moments by parameter name,
`state.json` the step and the settings that fix data order, schedule and dropout; `checksums.json` seals the folder.
Random numbers need no state of their own: each step draws from (seed, step, rank). The form knows no strategy,
precision, device or number of processes.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigqa.engine.update import State, Update
from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, read_json, write_error, write_json

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read whole."""

    step: int
    """Optimizer steps completed."""
    state: State
    settings: Mapping[str, Any]


def save(folder: Path, step: int, kept: State, settings: Mapping[str, Any]) -> Path:
    """Write a checkpoint of a completed step; it appears under its name only when it is whole."""
    path = folder / f"step-{step:08d}"
    state = {"schema": SCHEMA, "step": step, "settings": dict(settings), "extras": dict(kept.extras)}
    with atomic_folder(path, replace=True) as temporary:
        try:
            save_file(_portable(kept.weights), temporary / "weights.safetensors")
            save_file(_portable(kept.moments), temporary / "adam.safetensors")
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


def restore(checkpoint: Checkpoint, update: Update) -> None:
    """Put a checkpoint's weights and moments in place. Raises: BigqaError where it is of another model."""
    other = set(checkpoint.state.weights) ^ update.names()
    if other:
        raise BigqaError(f"the checkpoint is of another model: {min(other)} is in one and not in the other")
    update.load(checkpoint.state, checkpoint.step)


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
        state=State(
            weights=load_file(path / "weights.safetensors"),
            moments=load_file(path / "adam.safetensors"),
            extras=state["extras"],
        ),
        settings=state["settings"],
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
