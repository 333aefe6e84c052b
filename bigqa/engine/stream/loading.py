"""A model that is larger than memory, on its way from a checkpoint to its places. In: a folder. Out: a mode to load in.

Whatever makes a large tensor in host memory inside of the block, a library that loads weights or one that draws them,
gets it in a file without a name, written out at once. What memory holds of it is a copy that Linux can take back.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bigqa.engine.stream.disk import MappedDisk
from bigqa.units import MIB

LARGE_BYTES = 16 * MIB
"""Smaller ones stay in memory: of a large model they are few."""
UNFILLED = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default, torch.ops.aten.empty_like.default)
IN_TURN = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}
"""transformers loads by threads of its own, where a mode of this thread is not seen."""


@contextlib.contextmanager
def in_files(folder: Path | None) -> Iterator[None]:
    """Have large tensors of host memory made in files of a folder, each gone with its tensor. None: in memory.

    Raises: BigqaError where the disk has no room.
    """
    if folder is None:
        yield
        return
    with patch.dict(os.environ, IN_TURN), _InFiles(folder):
        yield


class _InFiles(TorchDispatchMode):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._disks: dict[int, MappedDisk] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not isinstance(made, Tensor) or made.device.type != "cpu" or made.nbytes < LARGE_BYTES:
            return made
        kind = func._schema.returns[0].alias_info
        if kind is None:
            return self._moved(made, filled=func not in UNFILLED)
        if kind.is_write and made.data_ptr() in self._disks:
            self._write_out(made)
        return made

    def _moved(self, made: Tensor, *, filled: bool) -> Tensor:
        """Return a tensor of a file in the place of one that was just made."""
        disk = MappedDisk(self.folder, made.nbytes)
        flat = disk.make(made.numel(), made.dtype)
        moved = flat.view(made.shape)
        self._disks[moved.data_ptr()] = disk
        if filled:
            moved.copy_(made)
            self._write_out(moved)
        return moved

    def _write_out(self, tensor: Tensor) -> None:
        disk = self._disks[tensor.data_ptr()]
        disk.leave([tensor], changed=True)
        disk.settle()
