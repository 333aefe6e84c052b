"""`bigqa doctor`: what of this machine matters, what it costs, how to mend it. Exit code 1: nothing trains so."""

from pathlib import Path
from typing import Annotated

import typer

BROKEN = 1


def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs are to be kept: its space and speed are looked at.")] = (
        Path(".")
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for a report: nothing private.")] = (
        False
    ),
) -> None:
    """Say what of this machine matters for training: each line is OK, or what it costs and how to mend it."""
    from bigqa.console import console
    from bigqa.doctor.examination import examine
    from bigqa.show.doctor import doctor_json, show_doctor

    findings = examine(folder)
    print(doctor_json(findings)) if as_json else show_doctor(findings, console)
    if any(one.broken for one in findings):
        raise typer.Exit(BROKEN)
