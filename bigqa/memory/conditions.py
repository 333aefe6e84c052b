"""What is otherwise while a step is traced: dropout as the real device has it, no collector of its own time, and a line
for what a model cannot do."""

import contextlib
import gc
from collections.abc import Iterator

import torch

from bigqa.errors import BigqaError, in_a_line


@contextlib.contextmanager
def dropout_of(device_type: str) -> Iterator[None]:
    """Keep a mask of one byte per element, as CUDA's dropout does; the plain form multiplies by a float mask.

    What drops nothing has no mask (torch, `Dropout.cpp`, `is_fused_kernel_acceptable`). A `TorchFunctionMode` would do
    as well, at a third of the trace's time.
    """
    if device_type != "cuda":
        yield
        return
    functions = torch._VF
    plain = torch._C._VariableFunctions.dropout

    def dropout(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
        return torch.native_dropout(input, p, train)[0] if train and 0 < p < 1 else plain(input, p, train)

    functions.dropout = dropout  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del functions.dropout  # type: ignore[attr-defined]


@contextlib.contextmanager
def collected_on_demand() -> Iterator[None]:
    """Keep Python's collector from freeing at a moment of its own: two traces of one step must be alike."""
    was_enabled = gc.isenabled()
    gc.disable()
    # What is there already, imports for the most part, is none of the trace's, and would make every collection slow: it
    # is looked at for the last time.
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def told_in_a_line(what: str) -> Iterator[None]:
    """Let what a model cannot do be told in a line: its own code may fail in any way."""
    try:
        yield
    except BigqaError:
        raise
    except Exception as error:
        raise BigqaError(f"{what}: {in_a_line(error)}") from error
