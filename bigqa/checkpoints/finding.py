"""Checkpoints of a run. In: its folder, or one of them. Out: where they lie, what they are, and which are whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bigqa.engine.loop import checkpoint, manifest
from bigqa.engine.loop.evaluation import BEST
from bigqa.errors import BigqaError
from bigqa.files import read_json
from bigqa.language import tr


@dataclass(frozen=True)
class Found:
    """A checkpoint, as its folder says without its tensors being read."""

    path: Path
    step: int
    saved: datetime
    size_bytes: int
    is_best: bool
    sealed: dict[str, Any]
    """Its manifest; empty of one that has none that can be read."""


def paths_of(place: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first, its best last; or the one that a place is.

    Raises: BigqaError where there is none.
    """
    if not place.is_dir():
        raise BigqaError(tr("{place} is no folder: a run's, or one of its checkpoints, is wanted", place=place))
    if any((place / name).exists() for name in (manifest.FILE, manifest.BEFORE, *manifest.FILES)):
        return [place]
    folder = place if place.name == "checkpoints" else place / "checkpoints"
    best = sorted((folder.parent / BEST).glob(checkpoint.STEPS)) if (folder.parent / BEST).is_dir() else []
    found = [*checkpoint.newest_first(folder), *best]
    if not found:
        raise BigqaError(tr("{place} has no checkpoint", place=place))
    return found


def look_at(paths: Sequence[Path]) -> list[Found]:
    """Return what the folders of checkpoints say."""
    return [_look_at(path) for path in paths]


def problems(path: Path) -> list[tuple[str, str]]:
    """Read a checkpoint whole; return each file that is not as it was written, and what is wrong with it."""
    try:
        wrong = [(name, problem) for name, problem in manifest.check(path) if problem is not None]
        if not wrong:
            checkpoint.load(path)
    except BigqaError as error:
        return [(path.name, str(error))]
    return wrong


def newest_whole(place: Path) -> Path:
    """Return the newest checkpoint of a run that is whole, or the one that a place is. Raises: BigqaError."""
    first = None
    for path in paths_of(place):
        wrong = problems(path)
        if not wrong:
            return path
        first = first or manifest.damaged(path, f"{wrong[0][0]}: {wrong[0][1]}")
    assert first is not None
    raise first


def _look_at(path: Path) -> Found:
    try:
        sealed = read_json(path / manifest.FILE, tr("the checkpoint's manifest"))
    except BigqaError:
        sealed = {}
    sealed = sealed if isinstance(sealed, dict) else {}
    files = [file for file in path.iterdir() if file.is_file()]
    step = path.name.rpartition("-")[2]
    return Found(
        path,
        int(step) if step.isdigit() else -1,
        datetime.fromtimestamp(max((file.stat().st_mtime for file in files), default=0.0)).astimezone(),
        sum(file.stat().st_size for file in files),
        path.parent.name == BEST,
        sealed,
    )
