"""Whether a question is answered at all. In: its candidates, the score of no answer among them. Out: a text, or "".

As in BERT's published code for SQuAD 2: no answer scores what the first token scores as start and end, the least of all
windows; "" is predicted where that is above the best span's score by more than a threshold, and the threshold is the
one that would have been best on a development set.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Candidates = Sequence[Mapping[str, Any]]
"""Texts with their scores, the best first; the text of no answer is ""."""
DEFAULT = 0.0
"""The threshold where nothing was there to choose it on: the published code's own."""


def margin_of(candidates: Candidates) -> float:
    """Return by how much no answer scores above the best text."""
    best = next((one["score"] for one in candidates if one["text"]), float("-inf"))
    return float(next(one["score"] for one in candidates if not one["text"]) - best)


def answer_of(candidates: Candidates, threshold: float) -> str:
    """Return the best text, or "" where no answer scores above it by more than the threshold."""
    return "" if margin_of(candidates) > threshold else _best(candidates)


def best_threshold(nbest: Mapping[str, Candidates], measure: Callable[[str, str], float]) -> float:
    """Return the threshold of the highest sum of `measure`, which takes a question's name and a text for it.

    It lies halfway between two margins: on one of them, the rounding of another device would tip the question over.
    """
    gains: dict[float, float] = {}
    for name, candidates in nbest.items():
        margin = margin_of(candidates)
        gains[margin] = gains.get(margin, 0.0) + measure(name, _best(candidates)) - measure(name, "")
    margins = sorted(margin for margin in gains if margin < float("inf"))
    total = best = 0.0
    chosen = margins[0] - 1 if margins else DEFAULT  # nothing is answered
    for margin, following in zip(margins, (*margins[1:], margins[-1] + 2 if margins else 0.0), strict=False):
        total += gains[margin]
        if total > best:
            best, chosen = total, (margin + following) / 2
    return chosen


def _best(candidates: Candidates) -> str:
    return str(next((one["text"] for one in candidates if one["text"]), ""))
