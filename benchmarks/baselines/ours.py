"""bigqa's own training in this process, with the processor's seconds of each step in its metrics beside the clock's.

Run: `python -m benchmarks.baselines.ours OPTIONS`, the options of `bigqa train`.
"""

import os
import time
from typing import Any

from bigqa.engine.loop.recorder import Recorder
from bigqa.engine.loop.stop import PARENT_VARIABLE
from bigqa.train import main as train


def main() -> None:
    """Train."""
    os.environ[PARENT_VARIABLE] = str(os.getppid())  # as if a launcher had started it
    take, last = Recorder.step, time.process_time()

    def step(self: Recorder, record: dict[str, Any]) -> None:
        nonlocal last
        now = time.process_time()
        take(self, record | {"processor_s": now - last})
        last = now

    Recorder.step = step  # type: ignore[method-assign]
    train()


if __name__ == "__main__":
    main()
