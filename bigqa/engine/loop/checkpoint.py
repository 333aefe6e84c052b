"""Checkpoints in one canonical form, whole or absent. In: weights and optimizer by name. Out: `checkpoints/step-N/`.

`weights.safetensors` holds fp32 weights by parameter name, `adam.safetensors` the two moments by parameter name (and
`scales.safetensors` the scales of those that were kept in 8 bits, without which they would not come back to the bit),
`state.json` the step and the settings that fix data order, schedule and dropout; `manifest.json` seals the folder.
Random numbers need no state of their own: each step draws from (seed, step, rank). The form knows no strategy,
precision, device or number of processes.
"""

import functools
import hashlib
import itertools
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigqa.engine.lazy import Lazy
from bigqa.engine.loop import manifest
from bigqa.engine.optim.moments import BLOCK
from bigqa.engine.optim.update import State, Update
from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, read_json, write_json
from bigqa.language import tr

SCHEMA = 2
WEIGHTS, MOMENTS, SCALES = (f"{name}.safetensors" for name in ("weights", "adam", "scales"))
STEPS = "step-*"
VALUE_BYTES = 4
"""Of weights, moments and scales, whatever they are kept in as a run trains."""
BESIDE_BYTES = 2**20
"""Most of what lies beside the values: names and shapes, settings, digests."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read whole."""

    step: int
    """Optimizer steps completed."""
    state: State
    settings: Mapping[str, Any]


def save(
    folder: Path, step: int, kept: State, settings: Mapping[str, Any], plan: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint of a completed step; it appears under its name only when it is whole.

    `plan`: how it was trained, for whoever looks at it.
    """
    path = path_of(folder, step)
    state = {"schema": SCHEMA, "step": step, "settings": dict(settings), "extras": dict(kept.extras)}
    shapes = {name: tuple(weight.shape) for name, weight in kept.weights.items()}
    of_moments = {name: shapes[name.partition(".")[2]] for name in kept.moments}
    with atomic_folder(path, replace=True) as temporary:
        digests = {
            WEIGHTS: write_tensors(temporary / WEIGHTS, shapes, kept.weights),
            MOMENTS: write_tensors(temporary / MOMENTS, of_moments, kept.moments),
        }
        if kept.scales:
            of_scales = {name: tuple(scale.shape) for name, scale in kept.scales.items()}
            digests[SCALES] = write_tensors(temporary / SCALES, of_scales, kept.scales)
        write_json(temporary / "state.json", state)
        manifest.write(temporary, digests, settings, step, plan or {})
    return path


def size_of(values: int) -> int:
    """Return what a checkpoint of so many trained values takes on a disk, at most."""
    return VALUE_BYTES * (3 * values + 2 * -(-values // BLOCK)) + BESIDE_BYTES


def path_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def keep_last(folder: Path, count: int) -> None:
    """Remove all but the newest checkpoints, and what a run left that was killed while it saved."""
    for path in (*newest_first(folder)[count:], *folder.glob(".step-*.tmp")):
        shutil.rmtree(path, ignore_errors=True)


def load_newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest whole checkpoint; each damaged one is reported and the one before it tried."""
    for path in newest_first(folder):
        try:
            return load(path)
        except BigqaError as error:
            say(tr("{error}; trying the checkpoint before it", error=error))
    return None


def restore(checkpoint: Checkpoint, update: Update) -> None:
    """Put a checkpoint's weights and moments in place. Raises: BigqaError where it is of another model."""
    other = set(checkpoint.state.weights) ^ update.names()
    if other:
        raise BigqaError(
            tr("the checkpoint is of another model: {other} is in one and not in the other", other=min(other))
        )
    update.load(checkpoint.state, checkpoint.step)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint whole. Raises: BigqaError where a byte of it is not as it was written."""
    files = manifest.check_all(path)
    state = _state(path)
    return Checkpoint(
        step=state["step"],
        state=State(
            weights=_tensors(path / WEIGHTS),
            moments=_tensors(path / MOMENTS),
            scales=_tensors(path / SCALES) if SCALES in files else {},
            extras=state["extras"],
        ),
        settings=state["settings"],
    )


def _state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state, of which each part is what it is meant to be. Raises: BigqaError."""
    state = read_json(path / "state.json", tr("the checkpoint's state"))
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != SCHEMA:
        raise BigqaError(
            tr(
                "the checkpoint {path} has schema {schema}, this bigqa reads {schema_2}",
                path=path,
                schema=schema,
                schema_2=SCHEMA,
            )
        )
    for name, kind in {"step": int, "settings": dict, "extras": dict}.items():
        if not isinstance(state.get(name), kind) or isinstance(state[name], bool):
            raise BigqaError(
                tr(
                    "the checkpoint {path} is damaged: {name} in state.json is not as it was saved",
                    path=path,
                    name=name,
                )
            )
    if state["step"] < 0:
        raise BigqaError(tr("the checkpoint {path} is damaged: step {state}", path=path, state=state["step"]))
    return state


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, whole or not."""
    return sorted(folder.glob(STEPS), reverse=True)


def write_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file in fp32, one tensor after the other: the library's own writer wants all of them at once.

    Returns: its SHA-256. Source of the form: https://github.com/huggingface/safetensors#format
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + VALUE_BYTES * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in itertools.chain([struct.pack("<Q", len(text)) + text], _values(shapes, tensors)):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _values(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """Yield the values of one tensor after the other."""
    for name, shape in shapes.items():
        # Widened in host memory: on a GPU it would be there in fp32 besides.
        value = tensors[name].detach().to("cpu").to(torch.float32).contiguous()
        assert tuple(value.shape) == shape, name
        yield value.view(-1).numpy().data


def _tensors(path: Path) -> Lazy:
    """Return the tensors of a file, each read when it is asked for."""
    try:
        file: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BigqaError(tr("{path} cannot be read: {error}", path=path, error=error)) from None
    return Lazy({name: functools.partial(file.get_tensor, name) for name in file.keys()})  # noqa: SIM118 - no mapping
