"""KorQuAD 1.0 scores, equal to those of the official `evaluate-v1.0.py`.

In: `{id: golds}` and `{id: prediction}`. Out: a `Score`, 0-100. A question without a prediction scores 0 and
counts; a prediction for an unknown id is ignored. Where the official script stops with a traceback, a
`BigqaError` names the question.
"""

import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr

_BRACKETS_TO_SPACE = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

Golds = Mapping[str, Sequence[str]]
Predictions = Mapping[str, Any]
"""Straight from a person's JSON file: that each value is text is for `mean_score` to check."""


@dataclass(frozen=True)
class Score:
    """What an evaluation gives: two means over `total` questions, `missing` of them without a prediction."""

    exact_match: float
    f1: float
    total: int
    missing: int


def normalize(text: str) -> str:
    """Return the form in which answers are compared.

    The order matters: quotes and brackets part words, other ASCII punctuation glues them together.
    """
    spaced = text.translate(_BRACKETS_TO_SPACE)
    return " ".join(spaced.lower().translate(_WITHOUT_PUNCTUATION).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1 where both are equal once normalised, spaces included, else 0."""
    return float(normalize(prediction) == normalize(gold))


def f1(prediction: str, gold: str) -> float:
    """Return the overlap of the normalised characters, 0-1."""
    return character_f1(normalize(prediction), normalize(gold))


def score(golds: Golds, predictions: Predictions) -> Score:
    """Score predictions against golds, the best gold of each question counting.

    Raises: BigqaError where a gold list is empty, a prediction is not text, or there is no question at all.
    """
    return mean_score(golds, predictions, normalize)


def character_f1(prediction: str, gold: str) -> float:
    """Return the F1 of two normalised texts as multisets of characters, spaces left out.

    Two empty texts give 0, though they match exactly: so does the official script.
    """
    predicted, wanted = Counter(prediction.replace(" ", "")), Counter(gold.replace(" ", ""))
    shared = (predicted & wanted).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / predicted.total(), shared / wanted.total()
    return 2 * precision * recall / (precision + recall)


def mean_score(
    golds: Golds,
    predictions: Predictions,
    normalizer: Callable[[str], str],
    overlap: Callable[[str, str], float] = character_f1,
) -> Score:
    """Score with any normalisation, and a measure of two normalised texts beside whether they are equal.

    The two take their maximum over the golds separately.
    """
    if not golds:
        raise BigqaError(tr("there is no question to score; give a gold file that holds questions"))
    matched = overlapped = 0.0
    missing = 0
    for question, texts in golds.items():
        if not texts:
            raise BigqaError(
                tr("question {question!r} has an empty list of gold answers; add one or drop it", question=question)
            )
        if question not in predictions:
            missing += 1
            continue
        found = _normalized(question, predictions[question], normalizer)
        wanted = [_normalized(question, text, normalizer, tr("gold answer")) for text in texts]
        matched += max(float(found == text) for text in wanted)
        overlapped += max(overlap(found, text) for text in wanted)
    total = len(golds)
    return Score(100.0 * matched / total, 100.0 * overlapped / total, total, missing)


def _normalized(question: str, text: Any, normalizer: Callable[[str], str], role: str = "prediction") -> str:
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        advice = tr('give a string, "" for no answer')
        raise BigqaError(
            tr(
                "the {role} of question {question!r} is {kind}, not text; {advice}",
                role=role,
                question=question,
                kind=kind,
                advice=advice,
            )
        )
    try:
        return normalizer(text)
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair (\ud800), and the HTML parser of 2.x cannot take one.
        raise BigqaError(
            tr("the {role} of question {question!r} holds half a surrogate pair; drop it", role=role, question=question)
        ) from None
