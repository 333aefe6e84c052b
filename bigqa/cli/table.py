"""`bigqa table`: what was predicted and what was measured."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bigqa.console import progress, tell
from bigqa.errors import UsageError
from bigqa.language import put, tr


def table(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Of run reports.  [default: benchmarks/runs/cpu and gpu]"),
    ] = None,
    grade: Annotated[bool, typer.Option("--grade", help="Print the planner's marks instead.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print what in benchmarks/ is stale; with --grade, which bars do not hold.")
    ] = False,
    update: Annotated[bool, typer.Option("--update", help="Write benchmarks/ anew: tables, charts, page.")] = False,
    form: Annotated[
        Literal["md", "csv", "json", "html"] | None, typer.Option("--format", help="[default: as --out ends, or md]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a file instead of the screen.")] = None,
    charts: Annotated[Path | None, typer.Option(help="Write the charts into this folder.")] = None,
) -> None:
    """Show what was predicted and what was measured, and grade the planner by it."""
    from bigqa.table.command import form_of, null_gpu_part, tabled, torture_part, write_all

    if update and (check or grade or form or out):
        raise UsageError(
            tr("--update writes all that is in benchmarks/: it goes with no --check, --grade, --format, --out")
        )
    with progress(tr("Predicting anew")) as on_row:
        found = tabled(folders or [], on_row)
    if update:
        written = found.update()
    else:
        written = write_all(found.charts(charts)) if charts else []
        if grade or not check:
            chosen = form_of(form, out)
            text = found.text(chosen, graded=grade)
            if chosen == "md" and not folders:
                text += null_gpu_part() if grade else torture_part()
            written += write_all({out: text + "\n"}) if out else []
            if out is None:
                print(text)
    for path in written:
        tell(tr("written: {path}", path=path))
    if check:
        wrong = found.failed if grade else found.stale()
        for name in wrong:
            tell(put("{how}: {name}", how=tr("FAIL") if grade else tr("stale"), name=name))
        raise typer.Exit(bool(wrong))
