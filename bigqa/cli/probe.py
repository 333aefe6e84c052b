"""`bigqa probe`: what fits, how fast, and what it gives up."""

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bigqa.language import tr
from bigqa.ranges import size
from bigqa.run.options import MODEL_HELP, parsed, ranged

NOTHING_FITS = 3
"""The exit code where no strategy fits."""
ABOUT_SHOWING = ("show_all", "as_json", "least", "out", "html", "calibrate")


def _signature(
    model: Annotated[str, typer.Argument(help=MODEL_HELP + " Only its configuration is used.")],
    task: Annotated[str, typer.Option(help="qa, classify, score or lm; korquad1 and korquad2 are qa.")] = "qa",
    tokenizer: Annotated[str | None, typer.Option(help="For --train-file, where the model has no vocabulary.")] = None,
    seq_len: Annotated[int | None, ranged("seq_len", "Longest window.  [default: the recipe's]")] = None,
    global_batch: Annotated[int | None, ranged("global_batch", "Windows per step.  [default: the recipe's]")] = None,
    gpu: Annotated[str, typer.Option(help="auto, none, or a card that is not here, such as T4 or 3090.")] = "auto",
    gpu_memory: Annotated[
        str | None,
        parsed(size("--gpu-memory"), "Use at most this much of a GPU, such as 8GiB."),
    ] = None,
    gpus: Annotated[int | None, ranged("gpus", "GPUs of a machine.  [default: those here]")] = None,
    nodes: Annotated[int, ranged("nodes", "Machines.")] = 1,
    host_memory: Annotated[
        str | None,
        parsed(size("--host-memory"), "RAM to plan for.  [default: what is free here]"),
    ] = None,
    nvme: Annotated[Path | None, typer.Option(help="A folder on a fast disk to offload to.")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of weights.")] = "auto",
    strategy: Annotated[str | None, typer.Option(help="Judge this one alone.")] = None,
    tier: Annotated[int, ranged("tier", "Change at most: 0 nothing, 1 rounding, 2 learning.")] = 2,
    train_file: Annotated[Path | None, typer.Option(help="Count the windows and lost answers of this file.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show what does not fit as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    least: Annotated[bool, typer.Option("--need", help="How much GPU memory is enough, and on which cards.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the plan, and the files that launch it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the table as a page of its own.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="First measure this machine (30 s), and keep it.")] = (
        False
    ),
) -> None:
    """Say what fits, how fast, and what it gives up, before anything runs."""


@functools.wraps(_signature)
def probe(**options: Any) -> None:
    """Ask, show, and write what was asked for."""
    from bigqa.console import tell
    from bigqa.plan.question import Question

    shown = {name: options.pop(name) for name in ABOUT_SHOWING}
    question = Question(**options)
    if shown["calibrate"]:
        from bigqa.speed.calibration import calibration_lines

        for line in calibration_lines(question.nvme):
            tell(line)
    if shown["least"]:
        _need(question, as_json=shown["as_json"])
    else:
        _probe(question, **shown)


def _need(question: Any, *, as_json: bool) -> None:
    from bigqa.console import console
    from bigqa.plan.need import need
    from bigqa.show.as_json import need_json
    from bigqa.show.need import show_need

    rows = need(question)
    print(need_json(rows)) if as_json else show_need(rows, console)


def _probe(question: Any, *, show_all: bool, as_json: bool, out: Path | None, html: Path | None, **_: Any) -> None:
    from bigqa.console import console, tell
    from bigqa.files import check_outputs, write_text
    from bigqa.plan.files import write_plan
    from bigqa.plan.probe import probe
    from bigqa.show.as_json import probe_json
    from bigqa.show.page import probe_page
    from bigqa.show.probe import show_probe

    check_outputs(out, html)
    found = probe(question)
    if as_json:
        print(probe_json(found))
    else:
        show_probe(found, out, console, show_all=show_all or question.strategy is not None)
    if html is not None:
        write_text(html, probe_page(found))
    if out is not None and found.chosen is not None:
        for path in write_plan(found, out):
            tell(tr("written: {path}", path=path))
    if found.chosen is None:
        raise typer.Exit(NOTHING_FITS)
