"""Work on the host beside the computation, in its order. In: functions. Out: what they did, when it is asked for.

On a GPU a thread of its own adds up and steps what has left, while the layers below are computed. On a CPU there is
nothing to do it beside: everything is done at once.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from bigqa.engine.threads import thread_of

Work = Callable[[], None]


class Beside:
    """One after the other."""

    def __init__(self, device: torch.device, *, ahead: int | None = None, name: str = "update") -> None:
        """`ahead`: how many may be under way; none: any number. `name`: of the thread."""
        self.device, self.ahead, self.name = device, ahead, name
        self.threaded = device.type == "cuda"
        self._running: deque[Future[None]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, work: Work) -> None:
        """Begin, once few enough are under way. Raises: whatever an earlier one did."""
        if not self.threaded:
            work()
            return
        if self._thread is None:
            self._thread = thread_of(self.device, self.name)
        while self.ahead is not None and len(self._running) >= self.ahead:
            self._running.popleft().result()
        self._running.append(self._thread.submit(torch.no_grad()(work)))

    def done(self) -> None:
        """Wait until all is done. Raises: whatever one of them did."""
        while self._running:
            self._running.popleft().result()

    def drop(self) -> None:
        """Begin nothing more of what waits, and wait for what is under way, however it ends."""
        running, self._running = self._running, deque()
        for one in running:
            one.cancel()
        wait(running)
