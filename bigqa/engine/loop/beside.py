"""A checkpoint that is written while the steps go on. In: what writes it. Out: whether it is there, when asked."""

from collections.abc import Callable
from concurrent.futures import Future

import torch

from bigqa.engine.threads import thread_of


class WrittenBeside:
    """Writes one checkpoint at a time, from a copy, while the steps go on; a program that ends waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._thread = thread_of(device, "checkpoint")
        self._writing: Future[bool] | None = None

    def begin(self, write: Callable[[], bool]) -> None:
        """Begin to write. `write` returns whether it could."""
        self._writing = self._thread.submit(write)

    def is_over(self) -> bool:
        """Whether one has been written, or not, of which nobody has been told."""
        return self._writing is not None and self._writing.done()

    def end(self) -> bool | None:
        """Wait for what is being written; return whether it is there, once. Raises: what went wrong otherwise."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()
