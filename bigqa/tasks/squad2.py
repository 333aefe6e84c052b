"""SQuAD 2 scores, equal to those of the official `evaluate-v2.0.py`.

In: `{id: golds}` and `{id: prediction}`. Out: a `Score`, 0-100. Words are compared, without articles and ASCII
punctuation; a question without golds is answered by "" alone. The official script ends with a traceback where a
prediction is missing; here it scores 0 and counts, as in KorQuAD 1.0.
"""

import re
import string
from collections import Counter

from bigqa.tasks.korquad1 import Golds, Predictions, Score, mean_score

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return the form in which answers are compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def word_f1(prediction: str, gold: str) -> float:
    """Return the F1 of two normalised texts as multisets of words; where one has none, 1 if neither has."""
    found, wanted = Counter(prediction.split()), Counter(gold.split())
    if not found or not wanted:
        return float(found == wanted)
    shared = (found & wanted).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / found.total(), shared / wanted.total()
    return 2 * precision * recall / (precision + recall)


def score(golds: Golds, predictions: Predictions) -> Score:
    """Score predictions against golds, the best gold of each question counting. Raises: BigqaError."""
    # A gold of articles and punctuation alone does not count.
    counting = {name: [text for text in texts if normalize(text)] or [""] for name, texts in golds.items()}
    return mean_score(counting, predictions, normalize, word_f1)
