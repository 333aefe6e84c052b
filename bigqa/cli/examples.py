"""Examples below each command's help. In: nothing. Out: an application whose commands have them.

A remark is in the catalogues; a command is typed as it stands in every language.
"""

from collections.abc import Iterator

import typer

from bigqa.arguments import AS_IT_STANDS
from bigqa.language import joined, put, tr

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "probe": (
        (tr("What fits on a T4, which need not be here, and how fast it would be"), "probe enliple-large-v1 --gpu T4"),
        (tr("How much GPU memory is enough"), "probe enliple-large-v1 --need"),
    ),
    "rehearse": (
        (tr("Does this script run out of memory on a T4?"), "rehearse --gpu T4 -- python my_script.py --lr 1e-5"),
    ),
    "train": (
        (tr("Begin"), "train --model klue/bert-base --train-file train.json --out runs/first"),
        (tr("Go on after Ctrl-C or a crash"), "train --resume runs/first"),
    ),
    "predict": (
        (tr("Answer a file of questions"), "predict runs/first/model dev.json answers.json"),
        (tr("Label lines as they come"), "predict runs/comments/model - < comments.txt"),
    ),
    "evaluate": ((tr("As KorQuAD 1.0 scores"), "evaluate dev.json answers.json --metric korquad1"),),
    "generate": ((tr("Answer prompts"), "generate runs/chat/model prompts.jsonl answers.jsonl"),),
    "bench": ((tr("Every strategy that this machine can run"), "bench enliple-small --micro-batch 16,4 --out mine"),),
    "table": (
        (tr("What was measured, beside what was predicted"), "table mine"),
        (tr("How good the predictions were"), "table mine --grade"),
    ),
    "demo": ((tr("From plan to score, offline"), "demo --out demo"),),
    "doctor": ((tr("What of this machine matters, and how to mend it"), "doctor"),),
    "bundle": ((tr("What CodaLab takes, tried without a network"), "bundle runs/first"),),
    "seeds": (
        (
            tr("Five runs that differ in their seed alone"),
            "seeds 5 --model klue/bert-base --train-file a.json --out seeds/a",
        ),
    ),
    "sweep": ((tr("What a file says is to be tried"), "sweep sweep.yaml --out sweeps/first"),),
    "page": ((tr("Written anew, also while the run goes on"), "page runs/first"),),
    "launch-files": ((tr("Then read the README in the folder"), "launch-files launch"),),
    "data inspect": ((tr("How many windows, and how much padding"), "data inspect train.json klue/bert-base"),),
    "data korquad1": ((tr("Training and development file"), "data korquad1 --out data"),),
    "data korquad2": ((tr("Training and development files"), "data korquad2 --out data"),),
    "checkpoint list": ((tr("What a run has saved"), "checkpoint list runs/first"),),
    "checkpoint verify": ((tr("Is every byte as it was written?"), "checkpoint verify runs/first"),),
    "checkpoint convert": (
        (tr("The model as it is now, while the run goes on"), "checkpoint convert runs/first now --to transformers"),
        (tr("Go on with a training loop of your own"), "checkpoint convert runs/first state --to accelerate"),
    ),
    "convert enliple": ((tr("From a released folder"), "convert enliple korean-bert-large large-hf"),),
}
"""Command -> what an example does, and its words."""


def add_examples(app: typer.Typer) -> None:
    """Put examples below the help of each command of an application."""
    for name, info in commands_of(app):
        if name in EXAMPLES:
            lines = (put("  # {what}\n  bigqa {words}", what=what, words=words) for what, words in EXAMPLES[name])
            info.epilog = put("{mark}\n{heading}\n{lines}", mark=AS_IT_STANDS, heading=tr("Example:"),
                              lines=joined("\n", lines))  # fmt: skip


def commands_of(app: typer.Typer, before: str = "") -> Iterator[tuple[str, typer.models.CommandInfo]]:
    """Return the commands of an application, each with its whole name."""
    for info in app.registered_commands:
        yield before + (info.name or getattr(info.callback, "__name__", "").replace("_", "-")), info
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from commands_of(group.typer_instance, f"{before}{group.name} ")
