"""`bigqa demo`: the main job on the embedded sample."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Where it works; what is there of an earlier demo is replaced.")] = Path(
        "demo"
    ),
) -> None:
    """Train a small Korean QA model on a sample that comes along: plan, train, predict, score. Minutes, offline."""
    from bigqa.demo import run

    run(out)
