"""`bigqa page`: what a run came to, as a page."""

from pathlib import Path
from typing import Annotated

import typer

from bigqa.console import tell
from bigqa.language import tr


def page(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one of `bigqa seeds` or `bigqa sweep`.")],
    out: Annotated[
        Path | None, typer.Option(help="The page.  [default: report.html or page.html in the folder]")
    ] = None,
) -> None:
    """Write the page of a run, whole or not: curves, memory, scores, answers, and what it would cost to go on.

    bigqa page runs/first
    """
    from bigqa.files import check_outputs
    from bigqa.pages.run_page import write_page
    from bigqa.runs.page import rewritten

    check_outputs(out)
    written = rewritten(run, out) or write_page(run, out)
    tell(tr("written: {path}", path=written))
