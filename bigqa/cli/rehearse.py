"""`bigqa rehearse`: a training command on a GPU that is not there. Exit code: 0 fits, 3 does not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bigqa.errors import UsageError

if TYPE_CHECKING:
    from bigqa.nullgpu.cards import NullGpu
    from bigqa.rehearse.report import Rehearsal

DOES_NOT_FIT = 3
"""As for `bigqa probe`."""


def rehearse(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="Such as: python my_script.py --lr 1e-5")
    ] = None,
    gpu: Annotated[str, typer.Option(help="The card, such as T4 or 3090.")] = "",
    gpus: Annotated[int, typer.Option(min=1, help="How many of them the machine has.")] = 1,
    gpu_memory: Annotated[str | None, typer.Option(help="Its memory, such as 15GiB.  [default: the card's]")] = None,
    steps: Annotated[int, typer.Option(min=1, help="End the command after so many optimizer steps.")] = 3,
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
    from bigqa.console import console
    from bigqa.files import write_text
    from bigqa.rehearse.page import rehearsal_page
    from bigqa.rehearse.render import show_rehearsals
    from bigqa.rehearse.run import rehearse as run
    from bigqa.rehearse.run import set_stage, with_bound

    card = _gpu(gpu, gpus, gpu_memory)
    if not command:
        raise UsageError("no command to rehearse: bigqa rehearse --gpu T4 -- python my_script.py")
    stage = set_stage(command, install=install)
    bounds = ("least", "most") if bound == "both" else (bound,)
    found = [
        run(command, with_bound(card, which), stage, steps=steps, true=true or (), snapshot=snapshot)
        for which in bounds
    ]
    if html is not None:
        write_text(html, rehearsal_page(found, card, command))
    if as_json:
        print(json.dumps(as_object(found, card, command), ensure_ascii=False))
    else:
        show_rehearsals(found, card, console)
    if not all(one.fits for one in found):
        raise typer.Exit(DOES_NOT_FIT)


def _gpu(name: str, count: int, memory: str | None) -> "NullGpu":
    from bigqa.nullgpu.cards import NullGpu, find_card
    from bigqa.units import format_bytes, parse_bytes

    if not name:
        raise UsageError("--gpu is missing: name a card, such as --gpu T4")
    try:
        size = parse_bytes(memory) if memory else None
    except ValueError as error:
        raise UsageError(f"--gpu-memory: {error}") from None
    card = NullGpu(find_card(name), count=count, memory_bytes=size)
    if card.free_bytes <= 0:
        context = format_bytes(card.context_bytes)
        raise UsageError(f"--gpu-memory {memory}: a CUDA context alone takes {context} of it")
    return card


def as_object(found: "Sequence[Rehearsal]", gpu: "NullGpu", command: Sequence[str]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "command": list(command),
        "gpu": gpu.card.name,
        "gpus": gpu.count,
        "fits": all(one.fits for one in found),
        "runs": [one.as_json() for one in found],
    }
