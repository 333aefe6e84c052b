"""`bigqa seeds`: equal runs with other seeds, and what they say together."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from bigqa import interrupts
from bigqa.console import say
from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.lock import held
from bigqa.ranges import number
from bigqa.run.options import given, ranged, train_signature

Count = Annotated[int, typer.Argument(parser=number("runs", "N"), metavar="N", help="How many runs.")]
Out = Annotated[Path | None, typer.Option(help="A folder for these runs: new, or that of the same command before.")]
AtOnce = Annotated[int | None, ranged("at_once", "Runs at a time.  [default: one for each GPU, or one]")]
LEFT_OUT = ("resume", "push_to_hub")


def seeds(**options: Any) -> None:
    """Train N times, with other seeds: mean, spread, confidence interval, the best model, and all as an ensemble.

    bigqa seeds 5 --model MODEL --train-file train.json --dev-file dev.json --out seeds/first

    The other options are those of `bigqa train`; --seed is the first one. The same command goes on where one was ended.
    """
    count, out, at_once = options.pop("count"), options.pop("out"), options.pop("at_once")
    if out is None:
        raise UsageError(tr("--out is missing: a folder for these runs, made new, or that of the same command before"))
    processes = options["num_processes"]
    asked = given(options) | ({"num_processes": processes} if processes > 1 else {})
    with held(out, say):
        from bigqa.runs.page import rewritten
        from bigqa.runs.seeds import Seeds, result
        from bigqa.runs.show import show_seeds

        runs = Seeds(count, asked, out, at_once)
        runs.run()
        if (number := interrupts.first()) is not None:
            say(tr("stopped; to go on: {command}", command=runs.command()))
            raise typer.Exit(interrupts.code_of(number))
        found = result(runs)
        rewritten(out)
        show_seeds(found, out)
    if runs.failed:
        raise typer.Exit(1)


def _signature() -> inspect.Signature:
    """Return the options of `bigqa train`, without those of one run alone, behind the count."""
    own: dict[str, Any] = {"count": (Count, inspect.Parameter.empty), "out": (Out, None), "at_once": (AtOnce, None)}
    of_train = inspect.signature(train_signature, eval_str=True).parameters
    rest = {name: (one.annotation, one.default) for name, one in of_train.items() if name not in (*LEFT_OUT, *own)}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    ordered = {"count": own["count"], "out": own["out"]} | rest | {"at_once": own["at_once"]}
    return inspect.Signature(
        [inspect.Parameter(name, kind, annotation=hint, default=value) for name, (hint, value) in ordered.items()]
    )


seeds.__signature__ = _signature()  # type: ignore[attr-defined]
seeds.__annotations__ = {one.name: one.annotation for one in _signature().parameters.values()}
