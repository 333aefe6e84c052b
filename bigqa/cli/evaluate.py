"""`bigqa evaluate`: scores answers as the official scripts do."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bigqa.console import show


def evaluate(
    gold: Annotated[Path, typer.Argument(help="Questions with answers: a file, a folder, a glob or a data set's id.")],
    predictions: Annotated[Path, typer.Argument(help='{id: text}; "" for no answer.')],
    metric: Annotated[
        str | None, typer.Option(help="korquad1, korquad2, squad2 or klue.  [default: as the questions' form asks for]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score predictions as the official scripts of KorQuAD, SQuAD 2 and KLUE-MRC do."""
    from bigqa.show.scores import scores_table
    from bigqa.tasks.scoring import METRICS, as_record, evaluate_files, metric_of, parts_of

    metric = metric or metric_of(gold)
    rows = {metric: evaluate_files(gold, predictions, metric)} | parts_of(gold, predictions, metric)
    records = {name: as_record(score, metric) for name, score in rows.items()}
    if as_json:
        record = records.pop(metric)
        parts = {name.replace(" ", "_"): part for name, part in records.items()}
        print(json.dumps(record | ({"parts": parts} if parts else {})))
        return
    show(scores_table("", records, METRICS[metric].overlap))
