"""Scores of a file of predictions against gold files.

In: golds in any form of data that is read, predictions as one JSON object `{id: text}`, and the metric's name. Out: a
`Score`.
Run: `evaluate_files(gold, predictions, "korquad1")`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json
from bigqa.language import tr
from bigqa.tasks import klue, korquad1, korquad2, squad2
from bigqa.tasks.documents import field, items, name_of
from bigqa.tasks.entries import Entry, Form, articles, entries, form_of, of_article
from bigqa.tasks.korquad1 import Golds, Predictions, Score

GOLD = tr("gold file")


@dataclass(frozen=True)
class Metric:
    """How a data set is read and scored."""

    form: Form
    score: Callable[[Golds, Predictions], Score]
    scores_impossible: bool = False
    """Whether a question may be without an answer."""
    overlap: str = "F1"
    """What the measure beside exact match is called."""


def evaluate_files(gold: Path, predictions: Path, metric: str) -> Score:
    """Score a predictions file.

    Raises: UsageError for an unknown metric; BigqaError where a file is unreadable or has a wrong form.
    """
    if metric not in METRICS:
        raise UsageError(
            tr("unknown metric {metric!r}; choose one of {metrics}", metric=metric, metrics=", ".join(METRICS))
        )
    answers = _read_predictions(predictions)
    golds = read_golds(gold, metric)
    if answers and not golds.keys() & answers.keys():
        name = next(iter(answers))
        raise BigqaError(
            tr(
                "no question of {gold} is in {predictions}, whose first is {name!r}: is it of other data?",
                gold=gold,
                predictions=predictions,
                name=name,
            )
        )
    try:
        return METRICS[metric].score(golds, answers)
    except BigqaError as error:  # a score knows the question, only we know the files
        raise BigqaError(
            tr("{error} (gold: {gold}, predictions: {predictions})", error=error, gold=gold, predictions=predictions)
        ) from None


def as_record(score: Score, metric: str) -> dict[str, Any]:
    """Return a score for a JSON file; KLUE's second measure has another name."""
    figures = dataclasses.asdict(score)
    figures[key_of(METRICS[metric].overlap)] = figures.pop("f1")
    return {"metric": metric} | figures


def key_of(overlap: str) -> str:
    """Return the key that a measure has in a record."""
    return overlap.lower().replace("-", "_")


def measure_of(gold: Path, metric: str) -> Callable[[str, str], float]:
    """Return the measure beside exact match, of a question's name and a text for it."""
    golds, score = read_golds(gold, metric), METRICS[metric].score
    return lambda name, text: score({name: golds[name]}, {name: text}).f1


def parts_of(gold: Path, predictions: Path, metric: str) -> dict[str, Score]:
    """Return the scores of the questions with an answer and of those without, where a file has both."""
    golds, answers = read_golds(gold, metric), _read_predictions(predictions)
    answerable = {name: texts for name, texts in golds.items() if texts}
    others = {name: texts for name, texts in golds.items() if not texts}
    if not (METRICS[metric].scores_impossible and answerable and others):
        return {}
    score = METRICS[metric].score
    return {tr("with an answer"): score(answerable, answers), tr("without an answer"): score(others, answers)}


def metric_of(path: Path) -> str:
    """Return the metric that a data set's form asks for.

    Articles of KorQuAD 2.x have no paragraphs, questions of KLUE have a `guid`; those of SQuAD 2 may be impossible.
    """
    for article, where in articles(path, GOLD):
        form = form_of(article)
        if form is None:
            break
        if form == "document":
            return "korquad2"
        for entry in of_article(article, where):
            if entry.is_klue:
                return "klue"
            if entry.is_impossible:
                return "squad2"
    return "korquad1"


def _read_predictions(path: Path) -> dict[str, Any]:
    value = read_json(path, tr("predictions file"))
    if not isinstance(value, dict):
        raise BigqaError(
            tr(
                "predictions file is {found}: {path}; it should be one object {{id: text}}",
                found=name_of(value),
                path=path,
            )
        )
    return value


def read_golds(path: Path, metric: str) -> dict[str, list[str]]:
    """Return the gold answers by question. Raises: BigqaError where the file is unreadable or has a wrong form."""
    golds: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for entry in entries(path, GOLD, METRICS[metric].form):
        texts = _golds_of(entry, metric)
        name = entry.id
        if name in golds:
            known = tr("{where}: question id {name!r}", where=entry.where, name=name)
            raise BigqaError(
                tr("{known} is there twice, first in {places}; keep one", known=known, places=places[name])
            )
        golds[name], places[name] = texts, entry.where
    if not golds:
        raise BigqaError(tr("{gold} holds no question: {path}", gold=GOLD, path=path))
    return golds


def _golds_of(entry: Entry, metric: str) -> list[str]:
    if METRICS[metric].form == "document":
        answer = field(entry.qa, "answer", dict, entry.where)
        return [field(answer, "text", str, f"{entry.where}.answer")]
    if entry.is_impossible and not METRICS[metric].scores_impossible:
        other = "klue" if entry.is_klue else "squad2"
        raise BigqaError(
            tr(
                "{where} is a question without an answer, as SQuAD 2 and KLUE-MRC have them, which {metric} "
                "cannot score; use --metric {other}",
                where=entry.where,
                metric=metric,
                other=other,
            )
        )
    return [field(answer, "text", str, at) for answer, at in items(entry.qa, "answers", entry.where)]


METRICS = {
    "korquad1": Metric("paragraphs", korquad1.score),
    "korquad2": Metric("document", korquad2.score),
    "squad2": Metric("paragraphs", squad2.score, scores_impossible=True),
    "klue": Metric("paragraphs", klue.score, scores_impossible=True, overlap="ROUGE-W"),
}
