"""The command line, one file per command. In: arguments. Out: functions called and text printed; no arithmetic here.

A command imports what it runs when it runs, so that help and refusals come at once. Imports: errors, files, interrupts,
lock, arguments, ranges, units, console, demo, configs, machine, nullgpu, rehearse, models, tasks, speed, plan, doctor,
show, run, runs, checkpoints, pages, bench, table. Never: torch.
"""

from typing import Any

from bigqa import interrupts
from bigqa.language import tr


def main() -> None:
    """Run as a program."""
    interrupts.listen()  # before what takes a while to import
    interrupts.say_when_left(tr("interrupted before anything was begun: there is nothing to save"))
    from bigqa.cli.commands import app
    from bigqa.console import as_program, command
    from bigqa.machine.heap import hold_tight

    hold_tight()
    as_program(lambda: command(app))


def __getattr__(name: str) -> Any:
    if name == "app":
        from bigqa.cli.commands import app

        return app
    raise AttributeError(name)
