"""`bigqa bench`: measures strategies, each in a process of its own."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bigqa import interrupts
from bigqa.console import say
from bigqa.language import tr
from bigqa.lock import held
from bigqa.ranges import numbers, sizes
from bigqa.run.options import MODEL_HELP, Nvme, parsed, ranged

SEQ_LENS, MICRO_BATCHES, CAPS = numbers("seq_len"), numbers("micro_batch"), sizes("--caps")
BUDGET_USED = 75
"""The exit code where the budget ended before its cases (EX_TEMPFAIL of sysexits.h)."""


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP + " Weights are random.")],
    strategies: Annotated[str, typer.Option(help="Names, with commas between.  [default: all of the device]")] = "",
    seq_len: Annotated[str, parsed(SEQ_LENS, "Lengths of windows, with commas.  [default: the recipe's]")] = "",
    micro_batch: Annotated[str, parsed(MICRO_BATCHES, "Sizes, with commas.  [default: the global batch]")] = "",
    global_batch: Annotated[int | None, ranged("global_batch", "Windows per step.  [default: the recipe's]")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of weights.")] = "auto",
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option()] = "auto",
    caps: Annotated[str, parsed(CAPS, "Limits of memory, with commas, such as 8GiB,4GiB.")] = "",
    nvme: Nvme = None,
    steps: Annotated[
        int,
        ranged("timed_steps", option="--steps", help="Timed steps after one that warms up; 0: memory alone."),
    ] = 2,
    heap: Annotated[Literal["tight", "kept"], typer.Option(help="Whether a CPU's freed memory is kept.")] = "tight",
    budget_s: Annotated[float | None, ranged("budget_s", "Begin no case after so long.")] = None,
    case_s: Annotated[float, ranged("case_s", "Cut a case that takes longer.")] = 900,
    out: Annotated[Path, typer.Option(help="Where reports go; a case that has one is not run again.")] = Path("bench"),
) -> None:
    """Measure speed and peak memory of each strategy on this machine, beside what was predicted."""
    from bigqa.bench import command as bench_command
    from bigqa.bench.cases import Grid
    from bigqa.bench.sweep import Limits

    grid = Grid(
        models=tuple(models),
        strategies=tuple(name.strip() for name in strategies.split(",") if name.strip()),
        seq_lens=SEQ_LENS(seq_len),
        micro_batches=MICRO_BATCHES(micro_batch),
        global_batch=global_batch,
        precision=None if precision == "auto" else precision,
        caps=CAPS(caps),
        steps=steps,
        heap=heap,
        nvme=nvme,
    )

    with interrupts.raised(), held(out, say):  # a case runs in a process of its own, and alone
        left = bench_command.bench(grid, device, out, Limits(case_s=case_s, budget_s=budget_s), say)
    say(tr("bigqa table {out} shows them", out=out))
    if left:
        say(tr("the budget is used up: {count} cases are left; the same command goes on with them", count=len(left)))
        raise typer.Exit(BUDGET_USED)
