"""`bigqa sweep`: a search for better settings."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from bigqa import interrupts
from bigqa.console import say
from bigqa.language import tr
from bigqa.run.options import ranged


def sweep(
    file: Annotated[Path, typer.Argument(help="YAML or JSON: train, search, trials. See the example.")],
    out: Annotated[Path, typer.Option(help="A folder for these trials, made new, or that of the same search before.")],
    storage: Annotated[
        str | None,
        typer.Option(help="A database or journal: file that several machines see.  [default: SQLite in the folder]"),
    ] = None,
    trials: Annotated[int | None, ranged("trials", "How many in all.  [default: the file's, or 20]")] = None,
    at_once: Annotated[int | None, ranged("at_once", "Runs at a time.  [default: one for each GPU, or one]")] = None,
) -> None:
    """Try settings that a FILE names, by Optuna; what is worse than the median of the others is ended early.

    bigqa sweep sweep.yaml --out sweeps/first

    train: {model: MODEL, train-file: train.json, dev-file: dev.json}

    search: {lr: {from: 1e-5, to: 1e-4, log: true}, epochs: [2, 3, 4]}

    trials: 20

    The same command goes on where one was ended, beside others on this machine, or with --storage on many:
    postgresql://USER:PASSWORD@HOST/NAME, sqlite:///FILE, journal:FILE.
    """
    from bigqa.runs.page import rewritten
    from bigqa.runs.search import read_search
    from bigqa.runs.show import show_sweep
    from bigqa.runs.storage import check_installed
    from bigqa.runs.sweep import Sweep, result

    check_installed()
    search = read_search(file)
    if trials is not None:
        search = dataclasses.replace(search, trials=trials)
    runs = Sweep(search, out, storage, at_once)
    runs.run()
    found = result(runs)
    rewritten(out)
    if (number := interrupts.first()) is not None:
        say(
            tr(
                "stopped with {over} of {trials} trials over; the same command goes on",
                over=runs.study.over(),
                trials=search.trials,
            )
        )
        raise typer.Exit(interrupts.code_of(number))
    show_sweep(found, out)
    if found["best"] is None:
        raise typer.Exit(1)
