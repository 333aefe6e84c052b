"""`bigqa bundle`: the folder that KorQuAD's CodaLab worksheets take."""

from pathlib import Path
from typing import Annotated

import typer

from bigqa.console import say
from bigqa.language import tr


def bundle(
    run: Annotated[Path, typer.Argument(help="The folder of a run that is complete.")],
    out: Annotated[Path | None, typer.Option(help="A new folder.  [default: RUN-bundle beside the run]")] = None,
    dev_file: Annotated[
        Path | None, typer.Option(help="Questions that the check answers.  [default: the run's dev file]")
    ] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Run its command alone, and score it.")] = True,
) -> None:
    """Write what KorQuAD's CodaLab takes, and run its command in an empty environment without network."""
    from bigqa.run.bundle import check_bundle, make_bundle
    from bigqa.run.folder import dev_file_of

    target = out or run.with_name(f"{run.resolve().name}-bundle")
    questions = (dev_file or dev_file_of(run)) if check else None
    make_bundle(run, target)
    say(tr("written: {folder} (README.md says how it is handed in)", folder=target))
    if questions is None:
        say(tr("not tried: name questions with --dev-file, and its command is run on them"))
        return
    found = check_bundle(target, questions)
    scores = found.scores
    figures = f"EM {scores['exact_match']:.2f}, {found.overlap} {scores[found.overlap]:.2f}"
    count = scores["total"]
    if found.cut_off:
        say(tr("its command, in an empty environment without network: {figures} on {count} questions",
               figures=figures, count=count))  # fmt: skip
    else:
        say(tr("its command, in an empty environment: {figures} on {count} questions (this system lets no user take "
               "the network away)", figures=figures, count=count))  # fmt: skip
