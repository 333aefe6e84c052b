"""Whole runs on cards that are not there, each start in a fork of its own. Run by `benchmarks.whole_runs`.

In: jobs as JSON, one a line, `{"card", "ranks", "options"}`. Out: what became of each, one a line: of each start its
exit code, torch's own peaks, and what they were after each part of the run. A start that steps down has the next after
it.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.null_worker import import_libraries, in_a_fork, join
from bigqa.console import quiet_libraries
from bigqa.engine.loop import fit
from bigqa.engine.optim.update import Update
from bigqa.engine.pinned import pinned_by_all
from bigqa.engine.sharding import ShardedUpdate
from bigqa.engine.stream.update import StreamedUpdate
from bigqa.plan.ladder import AGAIN
from bigqa.rehearse.own import answered_yes
from bigqa.rehearse.run import INSIDE
from bigqa.run import delivery, fine_tuning
from bigqa.run.folder import settings_from

sys.path.insert(0, str(INSIDE))
from bigqa_rehearsal.reads import Reads

PATHS = ("train_file", "dev_file", "out")
PARTS: tuple[tuple[str, Any, str], ...] = (
    ("place", fine_tuning, "_training"),
    ("step", fit, "_one_step"),
    ("save", fit, "save"),
    *(("finish", kind, "finish") for kind in (Update, ShardedUpdate, StreamedUpdate)),
    ("merge", delivery.adapters, "merge"),
    ("write", delivery, "_save_model"),
    ("score", delivery, "_score"),
)
"""Parts of a run, and the functions that they are."""
FORGETTING = ("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached")
"""Of torch.cuda: DeepSpeed calls them while it starts, and a whole run's peak would be none."""


class Peaks:
    """torch's peaks after each part of a run, the last of its kind."""

    def __init__(self) -> None:
        self.after: dict[str, list[int]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look when a part ends, within the block."""
        with ExitStack() as stack:
            for part, owner, name in PARTS:
                stack.enter_context(patch.object(owner, name, self._noted(part, getattr(owner, name))))
            # What is tested. It says what it predicts, and where it has nothing to say it says that.
            stack.enter_context(patch.object(fine_tuning, "check_fits", lambda *_, **__: {}))
            for name in FORGETTING:
                stack.enter_context(patch.object(torch.cuda, name, lambda *_, **__: None))
            yield

    def _noted(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            try:
                return function(*args, **options)
            finally:
                self.note(part)

        return noted

    def note(self, part: str) -> None:
        """Write down what the peaks are."""
        if torch.cuda.is_initialized():
            self.after[part] = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]


def start(job: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Take a run up in this process; return how it ended, and its peaks."""
    reads, peaks = Reads([], answered_yes()), Peaks()
    reads.start()
    if job["ranks"] > 1:
        join(job["ranks"])
    options = {name: Path(value) if name in PATHS else value for name, value in job["options"].items()}
    code, trace = 0, ""
    try:
        settings = settings_from({}, options["out"]) if resume else settings_from(options, None)
        with peaks.watching():
            fine_tuning.fine_tune(settings, resume=resume)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        code, trace = 1, traceback.format_exc()[-4000:]
    found = {"code": code, "parts": peaks.after, "pinned": pinned_by_all(), "managed": reads.most_managed()}
    if torch.cuda.is_initialized():
        found |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return found | ({"traceback": trace} if trace else {})


def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a job to its end, whatever steps down."""
    os.environ |= {"BIGQA_NULL_CARD": job["card"], "BIGQA_NULL_COUNT": str(job["ranks"])}
    starts: list[dict[str, Any]] = []
    while not starts or starts[-1].get("code") == AGAIN:
        resume = bool(starts)
        starts.append(in_a_fork(lambda: start(job, resume=resume)))  # noqa: B023 - called before it changes
    return starts


def main() -> None:
    """Answer job for job."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    major, minor = map(int, sys.argv[1].split("."))
    import_libraries((major, minor))
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    quiet_libraries()
    main()
