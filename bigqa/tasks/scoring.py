"""Scores of a file of predictions against gold files.

In: golds (KorQuAD 1.0 or SQuAD-like JSON; for 2.x a JSON file, a zip, or a folder of either), predictions as
one JSON object `{id: text}`, and the metric's name. Out: a `Score`.
Run: `evaluate_files(gold, predictions, "korquad1")`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json
from bigqa.tasks import korquad1, korquad2
from bigqa.tasks.documents import documents, field, items, name_of
from bigqa.tasks.korquad1 import Golds, Predictions, Score

GOLD = "gold file"


@dataclass(frozen=True)
class Question:
    """One question of a gold file; `where` says in which file and at which place."""

    id: str
    golds: list[str]
    where: str


@dataclass(frozen=True)
class Metric:
    """How a data set is read and scored."""

    read: Callable[[Path], Iterable[Question]]
    score: Callable[[Golds, Predictions], Score]


def evaluate_files(gold: Path, predictions: Path, metric: str) -> Score:
    """Score a predictions file.

    Raises: UsageError for an unknown metric; BigqaError where a file is unreadable or has a wrong form.
    """
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    answers = _read_predictions(predictions)
    golds = read_golds(gold, metric)
    try:
        return METRICS[metric].score(golds, answers)
    except BigqaError as error:  # a score knows the question, only we know the files
        raise BigqaError(f"{error} (gold: {gold}, predictions: {predictions})") from None


def metric_of(path: Path) -> str:
    """Return the metric that a data set's form asks for: articles of KorQuAD 2.x have no paragraphs."""
    for document, document_where in documents(path, GOLD):
        for article, _ in items(document, "data", document_where):
            return "korquad2" if isinstance(article, dict) and "paragraphs" not in article else "korquad1"
    return "korquad1"


def _read_predictions(path: Path) -> dict[str, Any]:
    value = read_json(path, "predictions file")
    if not isinstance(value, dict):
        raise BigqaError(f"predictions file is {name_of(value)}: {path}; it should be one object {{id: text}}")
    return value


def read_golds(path: Path, metric: str) -> dict[str, list[str]]:
    """Return the gold answers by question. Raises: BigqaError where the file is unreadable or has a wrong form."""
    golds: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for question in METRICS[metric].read(path):
        if question.id in golds:
            first = places[question.id]
            raise BigqaError(
                f"{question.where}: question id {question.id!r} is there twice, first in {first}; keep one"
            )
        golds[question.id], places[question.id] = question.golds, question.where
    if not golds:
        raise BigqaError(f"{GOLD} holds no question: {path}")
    return golds


def _read_korquad1(path: Path) -> Iterator[Question]:
    for article, article_where in items(read_json(path, GOLD), "data", f"{GOLD} {path}"):
        for paragraph, paragraph_where in _parts(article, "paragraphs", article_where):
            for qa, where in items(paragraph, "qas", paragraph_where):
                golds = [field(answer, "text", str, at) for answer, at in items(qa, "answers", where)]
                yield Question(field(qa, "id", str, where), golds, where)


def _read_korquad2(path: Path) -> Iterator[Question]:
    for document, document_where in documents(path, GOLD):
        for article, article_where in items(document, "data", document_where):
            for qa, where in _parts(article, "qas", article_where):
                answer = field(qa, "answer", dict, where)
                text = field(answer, "text", str, f"{where}.answer")
                yield Question(field(qa, "id", str, where), [text], where)


def _parts(article: Any, key: str, where: str) -> Iterator[tuple[Any, str]]:
    if isinstance(article, dict) and key not in article:
        raise BigqaError(f'{where} has no "{key}"; choose the metric of this data set')
    return items(article, key, where)


METRICS = {
    "korquad1": Metric(_read_korquad1, korquad1.score),
    "korquad2": Metric(_read_korquad2, korquad2.score),
}
