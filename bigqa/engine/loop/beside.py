"""A checkpoint that is written while the steps go on. In: what writes it. Out: whether it is there, when asked."""

import threading
from collections.abc import Callable


class Beside:
    """Writes one checkpoint at a time, from a copy, while the steps go on."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._is_written: bool | None = None
        self._error: Exception | None = None

    def begin(self, write: Callable[[], bool]) -> None:
        """Write, in a thread that a program waits for when it ends. `write` returns whether it could."""

        def run() -> None:
            try:
                self._is_written = write()
            except Exception as error:  # raised where it is waited for
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def is_over(self) -> bool:
        """Whether one has been written, or not, of which nobody has been told."""
        return self._thread is not None and not self._thread.is_alive()

    def end(self) -> bool | None:
        """Wait for what is being written; return whether it is there, once. Raises: what went wrong otherwise."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        is_written, self._is_written = self._is_written, None
        return is_written
