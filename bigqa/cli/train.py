"""`bigqa train`: launches the processes that train."""

import functools
import sys
import time
from typing import Any

import typer

from bigqa import interrupts
from bigqa.language import tr
from bigqa.run.options import given, train_signature


@functools.wraps(train_signature)
def train(**options: Any) -> None:
    """Launch the training processes; they run `bigqa/train.py` with the same options."""
    began = time.time()
    from bigqa.console import say
    from bigqa.run.again import over, resolved
    from bigqa.run.folder import settings_from
    from bigqa.run.launcher import launch

    interrupts.say_when_left(tr("interrupted before the run was started: there is nothing to save"))
    changes, resume = resolved(given(options), options["resume"])
    settings = settings_from(changes, resume)  # refused here before any process starts
    done = over(settings) if options["resume"] != resume and resume is not None else None
    if done is not None:
        say(done)
        return
    words = sys.argv[sys.argv.index("train") + 1 :]
    until = began + options["until"] if options["until"] else None
    raise typer.Exit(launch(words, settings.out, options["num_processes"], resume=resume is not None, until=until))
