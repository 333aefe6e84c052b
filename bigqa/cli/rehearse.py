"""`bigqa rehearse`: a training command on a GPU that is not there. Exit code: 0 fits, 3 does not."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bigqa import interrupts
from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.ranges import size
from bigqa.run.options import parsed, ranged

if TYPE_CHECKING:
    from bigqa.nullgpu.cards import NullGpu
    from bigqa.rehearse.planned import Planned
    from bigqa.rehearse.report import Rehearsal

DOES_NOT_FIT = 3
"""As for `bigqa probe`."""


def rehearse(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="Such as: python my_script.py --lr 1e-5")
    ] = None,
    gpu: Annotated[str, typer.Option(help="The card, such as T4 or 3090.  [default: the plan's]")] = "",
    gpus: Annotated[int | None, ranged("gpus", "Of a machine.  [default: the plan's, else 1]")] = None,
    gpu_memory: Annotated[
        str | None,
        parsed(size("--gpu-memory"), "Its memory, such as 15GiB.  [default: the card's]"),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Instead of a command: a plan.json, with our own trainer.")] = None,
    train_file: Annotated[Path | None, typer.Option(help="What to train the plan on.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="For --plan, where the model has no vocabulary.")] = None,
    steps: Annotated[int, ranged("steps", "End the command after so many optimizer steps.")] = 3,
    bound: Annotated[
        Literal["least", "most", "both"],
        typer.Option(help="Where streams overlap: all done at once, or only when the host waits."),
    ] = "least",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write memory over the steps as a page of its own.")] = None,
    snapshot: Annotated[Path | None, typer.Option(help="Write what torch's memory viewer opens.")] = None,
    true: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE:LINE", help="Answer yes to what is asked of the GPU there; or all."),
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="First get torch's CUDA build, where it is missing.")
    ] = False,
) -> None:
    """Run a training command on a GPU that is not there, and say whether it fits."""
    from bigqa.console import console, say
    from bigqa.files import check_outputs, write_text
    from bigqa.rehearse.page import rehearsal_page
    from bigqa.rehearse.planned import plan_lines
    from bigqa.rehearse.render import show_rehearsals
    from bigqa.rehearse.run import rehearse as run
    from bigqa.rehearse.run import set_stage, with_bound

    check_outputs(html, snapshot)
    planned = _planned(plan, train_file, command)
    card = gpu_of(gpu, gpus, gpu_memory, planned)
    words = command or ["bigqa", "train", "--plan", str(plan), "--train-file", str(train_file)]
    stage = set_stage(command or [sys.executable], install=install)
    found = []
    for which in ("least", "most") if bound == "both" else (bound,):
        with interrupts.raised(), _command(command, planned, train_file, tokenizer, card.count) as started:
            there = with_bound(card, which)
            found.append(run(started, there, stage, steps=steps, true=true or (), snapshot=snapshot))
    fits = all(one.fits for one in found)
    if html is not None:
        write_text(html, rehearsal_page(found, card, words))
    if as_json:
        print(json.dumps(as_object(found, card, words, planned), ensure_ascii=False))
    else:
        show_rehearsals(found, card, console)
        for line in plan_lines(planned, fits=fits) if planned is not None else ():
            say(line)
    if not fits:
        raise typer.Exit(DOES_NOT_FIT)


def _planned(plan: Path | None, train_file: Path | None, command: Sequence[str] | None) -> "Planned | None":
    from bigqa.rehearse.planned import read_planned
    from bigqa.tasks.documents import check_there

    if plan is None and not command:
        raise UsageError(tr("no command to rehearse: bigqa rehearse --gpu T4 -- python my_script.py"))
    if plan is None:
        return None
    if command:
        raise UsageError(tr("--plan and a command exclude each other: a plan is trained with bigqa's own trainer"))
    if train_file is None:
        raise UsageError(tr("--train-file is missing: what is the plan to be trained on?"))
    check_there(train_file)
    return read_planned(plan)


@contextmanager
def _command(
    command: list[str] | None, planned: "Planned | None", train_file: Path | None, tokenizer: str | None, count: int
) -> Iterator[list[str]]:
    """Hold the words of one run: a plan's has a run folder of its own."""
    from bigqa.rehearse.planned import training_command

    if planned is None or train_file is None:
        yield command or []
    else:
        with training_command(planned, train_file, tokenizer, count) as words:
            yield words


def gpu_of(name: str, count: int | None, memory: str | None, planned: "Planned | None") -> "NullGpu":
    """Return the cards that were asked for; what is left open is the plan's."""
    from bigqa.nullgpu.cards import NullGpu, find_card
    from bigqa.units import format_bytes

    if planned is not None and not name:
        name, memory_bytes = planned.card, planned.memory_bytes
    else:
        memory_bytes = None
    if not name:
        raise UsageError(tr("--gpu is missing: name a card, such as --gpu T4"))
    if memory is not None:
        memory_bytes = size("--gpu-memory")(memory)
    count = count or (planned.num_gpus if planned is not None else 1)
    card = NullGpu(find_card(name), count=count, memory_bytes=memory_bytes)
    if card.free_bytes <= 0:
        context = format_bytes(card.context_bytes)
        raise UsageError(
            tr("--gpu-memory {memory}: a CUDA context alone takes {context} of it", memory=memory, context=context)
        )
    return card


def as_object(
    found: "Sequence[Rehearsal]", gpu: "NullGpu", command: Sequence[str], planned: "Planned | None" = None
) -> dict[str, Any]:
    """Return what `--json` prints."""
    plan = {} if planned is None else {"plan": planned.predicted}
    return plan | {
        "command": list(command),
        "gpu": gpu.card.name,
        "gpus": gpu.count,
        "fits": all(one.fits for one in found),
        "runs": [one.as_json() for one in found],
    }
