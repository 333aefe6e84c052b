"""Entry for `accelerate launch bigqa/train.py OPTIONS`: settings -> build -> fit -> score -> report.

`bigqa train OPTIONS` launches this same file; see `bigqa/run/options.py` for the options.
"""

import functools
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The launcher puts this file's folder first on the path, where `models` and `report` would be top-level names.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

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
