"""KLUE-MRC scores, equal to those of KLUE's own baseline code (`klue_baseline/metrics`): exact match and ROUGE-W.

In: `{id: golds}` and `{id: prediction}`. Out: a `Score`, 0-100, with ROUGE-W in the place of F1. A question without
golds is answered by "" alone. What KLUE calls ROUGE-W is the F1 of the longest run of characters that both texts share,
as `difflib` finds it. KLUE's code leaves a question without a prediction out, or ends with a traceback; here it counts.
"""

import re
import string
from difflib import SequenceMatcher

from bigqa.tasks.korquad1 import Golds, Predictions, Score, mean_score

_QUOTED_BRACKETS = re.compile(r"""['"《》<>〈〉]\(\)‘’""")
"""Meant as a set of signs, it is read as one after the other: the sign of the set, and then these four."""
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return the form in which answers are compared."""
    return " ".join(_QUOTED_BRACKETS.sub(" ", text.lower()).translate(_WITHOUT_PUNCTUATION).split())


def rouge_w(prediction: str, gold: str) -> float:
    """Return the F1 of the longest run of characters that two normalised texts share, spaces included, 0-1."""
    if not gold or not prediction:
        return float(prediction == gold)
    # With difflib's own rules, as KLUE has it: signs that are frequent in a gold of 200 or more begin no run.
    matcher = SequenceMatcher(None, prediction, gold)
    longest = matcher.find_longest_match(0, len(prediction), 0, len(gold)).size
    if longest == 0:
        return 0.0
    precision, recall = longest / len(prediction), longest / len(gold)
    return 2 * precision * recall / (precision + recall)


def score(golds: Golds, predictions: Predictions) -> Score:
    """Score predictions against golds, the best gold of each question counting. Raises: BigqaError."""
    return mean_score({name: texts or [""] for name, texts in golds.items()}, predictions, normalize, rouge_w)
