"""KorQuAD 2.0 and 2.1 scores, equal to those of the official `evaluate-2.0.py` on a machine that has lxml.

In: `{id: [gold]}` and `{id: prediction}`, both may hold HTML. Out: a `Score`, 0-100. The rules are those of
1.0 but for two: tags are dropped first, and all spaces go at the end.
"""

import warnings

from bs4 import BeautifulSoup, FeatureNotFound, MarkupResemblesLocatorWarning, XMLParsedAsHTMLWarning

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.tasks import korquad1
from bigqa.tasks.korquad1 import Golds, Predictions, Score


def normalize(text: str) -> str:
    """Return the form in which answers are compared: no tags, no punctuation, no spaces.

    Raises: UnicodeEncodeError where the text holds half a surrogate pair, which no HTML parser takes.
    """
    return korquad1.normalize(_text_of(text)).replace(" ", "")


def exact_match(prediction: str, gold: str) -> float:
    """Return 1 where both are equal once normalised, else 0."""
    return float(normalize(prediction) == normalize(gold))


def f1(prediction: str, gold: str) -> float:
    """Return the overlap of the normalised characters, 0-1."""
    return korquad1.character_f1(normalize(prediction), normalize(gold))


def score(golds: Golds, predictions: Predictions) -> Score:
    """Score predictions against the one gold of each question.

    Raises: BigqaError where a question has no gold or several, a prediction is not text, or none is asked.
    """
    for question, texts in golds.items():
        if len(texts) > 1:
            raise BigqaError(
                tr(
                    "question {question!r} has {count} gold answers; KorQuAD 2 takes one",
                    question=question,
                    count=len(texts),
                )
            )
    return korquad1.mean_score(golds, predictions, normalize)


def _text_of(markup: str) -> str:
    # The official script names no parser, so its scores hang on what is installed; naming lxml ends that.
    with warnings.catch_warnings():
        # An answer may well look like a file name, an address or XML. It is none of them.
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
        try:
            return BeautifulSoup(markup, "lxml").get_text()
        except FeatureNotFound:
            raise BigqaError(tr("KorQuAD 2 scoring needs lxml, which is missing: pip install lxml")) from None
