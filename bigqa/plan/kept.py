"""Traces kept between commands: who asks of a model again gets its answer at once. In: what is wanted. Out: it.

A trace hangs on the model's configuration, the task, this package's code and the libraries, and all of that is in the
names of its files: whatever changes, it is made anew. What cannot be read or written is no error, it is only not kept.
Nothing is unpickled.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter

from bigqa.errors import BigqaError
from bigqa.files import atomic_path, cache_folder
from bigqa.memory.traces import settled
from bigqa.tasks.base import TaskKind
from bigqa.versions import code, versions

MODELS = 40
"""Whose traces are kept: of each a megabyte or two. The one that was asked of longest ago goes first."""
T = TypeVar("T")


class Kept:
    """The traces of one model and task."""

    def __init__(self, config: Any, kind: TaskKind[Any]) -> None:
        asked = [config.to_json_string(use_diff=False), type(config).__qualname__, kind.name]
        self._name = _digest([*asked, str(getattr(config, "_attn_implementation", None)), *_world()])

    def __call__(self, kind: type[T], what: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Return what was kept under a name, else make it. `kind`: a dataclass."""
        file = self._folder / f"{_digest([kind.__name__, *map(str, what)])}.z"
        adapter = _adapter(kind)  # type: ignore[arg-type]
        # Whatever is in a file that someone else may have damaged, it is then not what is asked for.
        with contextlib.suppress(OSError, ValueError, zlib.error):
            kept: T = adapter.validate_json(zlib.decompress(file.read_bytes()))
            return kept
        made = settled(make)
        with contextlib.suppress(OSError, BigqaError), atomic_path(file) as temporary:
            temporary.write_bytes(zlib.compress(adapter.dump_json(made), 1))
        return made

    @functools.cached_property
    def _folder(self) -> Path:
        folder = cache_folder() / "traces" / self._name
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
            for old in sorted(folder.parent.iterdir(), key=lambda one: -one.stat().st_mtime)[MODELS:]:
                shutil.rmtree(old, ignore_errors=True)
        return folder


def keeps(kind: TaskKind[Any]) -> bool:
    """Say whether a task's traces may be kept: its code must be of this package, which the names tell of."""
    return type(kind).__module__.partition(".")[0] == __name__.partition(".")[0]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _world() -> list[str]:
    """Return what traces hang on beside what is asked."""
    torch_now = [torch.cuda.is_available(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()]
    return [code(), json.dumps(versions(), sort_keys=True), *map(str, torch_now)]


def _digest(parts: list[str]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
