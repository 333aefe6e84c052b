"""`bigqa demo`: the main job on the embedded sample."""

from pathlib import Path
from typing import Annotated

import typer

from bigqa import interrupts


def demo(
    out: Annotated[Path, typer.Option(help="A new folder, or that of an earlier demo, which goes.")] = Path("demo"),
) -> None:
    """Plan, train, predict and score on the embedded sample, offline, in some minutes."""
    from bigqa.demo import run

    with interrupts.raised():
        run(out)
