"""`bigqa train`: launches the processes that train."""

import functools
import sys
from typing import Any

import typer

from bigqa import interrupts
from bigqa.language import tr
from bigqa.run.options import given, train_signature


@functools.wraps(train_signature)
def train(**options: Any) -> None:
    """Launch the training processes; they run `bigqa/train.py` with the same options."""
    from bigqa.run.folder import settings_from
    from bigqa.run.launcher import launch

    resume = options["resume"]
    interrupts.say_when_left(tr("interrupted before the run was started: there is nothing to save"))
    settings = settings_from(given(options), resume)  # refused here before any process starts
    words = sys.argv[sys.argv.index("train") + 1 :]
    raise typer.Exit(launch(words, settings.out, options["num_processes"], resume=resume is not None))
