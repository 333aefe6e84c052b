"""Entry for `accelerate launch -m bigqa.train OPTIONS`: settings -> build -> fit -> score -> report.

`bigqa train OPTIONS` launches it as a file, as `accelerate launch bigqa/train.py` in a checkout does; see
`bigqa/run/options.py` for the options.
"""

import functools
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    # Run as a file: Python puts its folder first on the path (not with -P), where `tasks` and `files` would be names of
    # the top. The folder above takes its place, so that the code is this file's own, whatever else is installed.
    ROOM = Path(__file__).resolve().parent
    sys.path[:] = [str(ROOM.parent), *(entry for entry in sys.path if not entry or Path(entry).resolve() != ROOM)]

import typer

from bigqa.console import command
from bigqa.machine.heap import hold_tight
from bigqa.run.options import given, train_signature


@functools.wraps(train_signature)
def train(**options: Any) -> None:
    """Run on the processes that the launcher started."""
    hold_tight()
    from bigqa.engine.loop.stop import tell_end
    from bigqa.engine.processes import lost_a_peer
    from bigqa.plan.ladder import AGAIN
    from bigqa.run.fine_tuning import fine_tune
    from bigqa.run.folder import settings_from
    from bigqa.run.launcher import go_on, spread_out

    spread_out()
    resume = options["resume"]
    settings = settings_from(given(options), resume)
    try:
        fine_tune(settings, resume=resume is not None)
    except SystemExit as stop:
        if stop.code == AGAIN:
            go_on(settings.out)
        raise
    except Exception as error:
        if not lost_a_peer(error):
            tell_end(settings.out, getattr(error, "exit_code", 1))
        raise


def main() -> None:
    """Run as a program."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(train)
    command(app)


if __name__ == "__main__":
    main()
