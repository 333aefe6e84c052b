"""`bigqa launch-files`: files for other launchers and trainers."""

from pathlib import Path
from typing import Annotated

import typer

from bigqa.console import tell
from bigqa.language import tr


def launch_files(out: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go.")]) -> None:
    """Write files for Accelerate, torchrun, SLURM and DeepSpeed, each explained."""
    from bigqa.configs import write_out

    for path in write_out(out):
        tell(tr("written: {path}", path=path))
