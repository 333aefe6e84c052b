"""`bigqa checkpoint`: what a run has saved: listed, verified, and in other libraries' forms."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bigqa.console import say, show, tell
from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.run.options import ranged

app = typer.Typer(no_args_is_help=True, help="What a run has saved: listed, verified, taken elsewhere.")
DAMAGED = 1
"""The exit code where a checkpoint is not what was written."""
Place = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one of its checkpoints.")]


class To(str, Enum):
    """Forms that can be written."""

    transformers = "transformers"
    accelerate = "accelerate"
    deepspeed = "deepspeed"


class From(str, Enum):
    """Forms that a run can go on from."""

    accelerate = "accelerate"
    deepspeed = "deepspeed"


@app.command("list")
def list_checkpoints(
    run: Place, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Show each checkpoint: its step, when it was saved, its size, and what it was trained as."""
    import json

    from bigqa.checkpoints.finding import look_at, paths_of
    from bigqa.checkpoints.table import as_record, checkpoints_table

    found = look_at(paths_of(run))
    if as_json:
        print(json.dumps({"checkpoints": [as_record(one) for one in found]}, ensure_ascii=False))
    else:
        show(checkpoints_table(found))


@app.command()
def verify(run: Place) -> None:
    """Read every byte, and say of each checkpoint whether it is as it was written. Exit code 1: one is not."""
    from bigqa.checkpoints.finding import paths_of, problems

    wrong = 0
    for path in paths_of(run):
        found = problems(path)
        wrong += bool(found)
        if not found:
            say(tr("{path}: whole", path=path))
        for name, problem in found:
            say(tr("{path}: damaged: {name}: {problem}", path=path, name=name, problem=problem))
    if wrong:
        tell(tr("a resume goes on from the newest that is whole; the damaged ones can be removed"))
        raise typer.Exit(DAMAGED)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A run or checkpoint; with --from, the other library's folder.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; with --from, the run that is to go on.")],
    to: Annotated[To | None, typer.Option(help="The form to write.")] = None,
    origin: Annotated[From | None, typer.Option("--from", help="The form that is read.")] = None,
    one_group: Annotated[
        bool, typer.Option("--one-group", help="The optimizer's parameters in one group, not by weight decay.")
    ] = False,
    step: Annotated[int | None, ranged("step", "With --from: steps that are done.  [default: as it says]")] = None,
) -> None:
    """Write a checkpoint as another library reads it, or have a run go on from another library's."""
    from bigqa.checkpoints.conversion import convert_from, convert_to

    if (to is None) == (origin is None):
        raise UsageError(tr("one of --to and --from is wanted"))
    if to is not None:
        path = convert_to(to.value, source, target, one_group=one_group)
        say(tr("{path} is in {target}, as {form} reads it", path=path, target=target, form=to.value))
    elif origin is not None:
        path = convert_from(origin.value, source, target, step=step, say=say)
        say(tr("written: {path}; to go on: bigqa train --resume {target}", path=path, target=target))
