"""`bigqa evaluate`: scores answers as the official scripts do."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bigqa.console import show


def evaluate(
    gold: Annotated[Path, typer.Argument(help="Questions with answers; for 2.x also a folder or a zip.")],
    predictions: Annotated[Path, typer.Argument(help="{id: text}")],
    metric: Annotated[str, typer.Option(help="korquad1 or korquad2.")] = "korquad1",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score predictions as the official KorQuAD scripts do."""
    from bigqa.tasks.scoring import evaluate_files

    score = evaluate_files(gold, predictions, metric)
    if as_json:
        print(json.dumps(dataclasses.asdict(score)))
        return
    table = Table("metric", "EM", "F1", "questions", "missing")
    table.add_row(metric, f"{score.exact_match:.2f}", f"{score.f1:.2f}", str(score.total), str(score.missing))
    show(table)
