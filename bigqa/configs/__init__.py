"""Files for launchers and trainers other than bigqa's own. In: a folder. Out: the files in it.

Of Accelerate, torchrun and SLURM, and of DeepSpeed: `launch/` and `deepspeed/` beside this file, each with a README.
Knows nothing of models or plans. No part of the trainer reads these files; people take them.
Imports: errors, files, strategy, engine. Never: torch, typer.
"""

import shutil
from pathlib import Path

from bigqa.errors import BigqaError
from bigqa.language import tr

FOLDER = Path(__file__).parent
KINDS = ("launch", "deepspeed")


def write_out(folder: Path) -> list[Path]:
    """Copy all files into `folder`, one folder of each kind; return what was written. A file that was changed stays."""
    copies = {source: folder / source.relative_to(FOLDER) for source in files()}
    for source, target in copies.items():
        if target.exists() and target.read_bytes() != source.read_bytes():
            raise BigqaError(
                tr(
                    "{target} is there and differs from bigqa's own: name another folder, or move it away",
                    target=target,
                )
            )
    for source, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)  # with its mode: torchrun.sh is a program
    return list(copies.values())


def files() -> list[Path]:
    """Return the files, wherever this package is installed."""
    return sorted(path for kind in KINDS for path in (FOLDER / kind).iterdir() if path.is_file())
