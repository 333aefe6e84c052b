"""Entry for `accelerate launch -m bigqa.train OPTIONS`: settings -> build -> fit -> score -> report.

`bigqa train OPTIONS` launches it as a file, as `accelerate launch bigqa/train.py` in a checkout does; see
`bigqa/run/options.py` for the options.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    # Run as a file: Python puts its folder first on the path (not with -P), where `tasks` and `files` would be names of
    # the top. The folder above takes its place, so that the code is this file's own, whatever else is installed.
    ROOM = Path(__file__).resolve().parent
    sys.path[:] = [str(ROOM.parent), *(entry for entry in sys.path if not entry or Path(entry).resolve() != ROOM)]

if __name__ == "__main__":  # before what takes a while to import
    from bigqa import interrupts
    from bigqa.language import tr

    interrupts.listen()
    interrupts.say_when_left(tr("interrupted before the run had begun: there is nothing to save"))

import typer

from bigqa import also_called, interrupts
from bigqa.console import as_program, command
from bigqa.machine.heap import hold_tight
from bigqa.run.options import given, train_signature


@functools.wraps(train_signature)
def train(**options: Any) -> None:
    """Run on the processes that the launcher started."""
    hold_tight()
    from bigqa.engine.loop import deadline
    from bigqa.run.again import resolved
    from bigqa.run.folder import settings_from
    from bigqa.run.launcher import launch, started_alone, watch_launcher

    watch_launcher()
    deadline.give_if_none(options["until"])
    changes, resume = resolved(given(options), options["resume"])
    settings = settings_from(changes, resume)
    count = started_alone()
    if count is not None:
        raise SystemExit(launch(sys.argv[1:], settings.out, count, resume=resume is not None))
    _train(settings, resume=resume is not None)


def _train(settings: Any, *, resume: bool) -> None:
    from bigqa.engine.loop.stop import PARENT_VARIABLE, tell_end
    from bigqa.engine.processes import lost_a_peer
    from bigqa.errors import BigqaError
    from bigqa.plan.ladder import AGAIN
    from bigqa.run.fine_tuning import fine_tune
    from bigqa.run.launcher import go_on
    from bigqa.run.workers import LOST_PEER

    try:
        fine_tune(settings, resume=resume)
    except SystemExit as stop:
        if stop.code == AGAIN:
            go_on(settings.out)
        raise
    except Exception as error:
        asked = interrupts.first()
        if lost_a_peer(error):  # whose end is the cause, and is told by it or by what waits for it
            interrupts.leave("", LOST_PEER if asked is None else interrupts.code_of(asked))
        is_first = tell_end(settings.out, getattr(error, "exit_code", 1))
        if isinstance(error, BigqaError) and PARENT_VARIABLE in os.environ and settings.out.is_dir():
            error.told = not is_first
        raise


if __name__ != "__main__":
    also_called(__name__)  # `bigqa.train(...)`


def main() -> None:
    """Run as a program."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(train)
    command(app)


if __name__ == "__main__":
    as_program(main)
