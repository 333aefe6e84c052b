"""`bigqa demo`: a task's job on its embedded sample."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="A new folder, or that of an earlier demo, which goes.")] = Path("demo"),
    task: Annotated[str, typer.Option(help="qa, classify or lm.")] = "qa",
) -> None:
    """Plan, train, predict and score on an embedded sample, offline, in some minutes."""
    from bigqa.demo import run

    run(out, task)
