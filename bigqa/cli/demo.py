"""`bigqa demo`: the main job on the embedded sample."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="A new folder, or that of an earlier demo, which goes.")] = Path("demo"),
) -> None:
    """Plan, train, predict and score on the embedded sample, offline, in some minutes."""
    from bigqa.demo import run

    run(out)
