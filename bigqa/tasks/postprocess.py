"""Answers out of logits. In: a question's windows and their start and end logits. Out: its best spans as text.

The 20 best starts x 20 best ends of each window, the start where the token has its widest surroundings, the end at or
after the start, at most `max_answer_length` tokens; the best sum of the two logits wins. Where a question may have no
answer, that is a candidate too: see `nulls`.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np

from bigqa.tasks.nulls import answer_of
from bigqa.tasks.rows import Rows
from bigqa.tasks.squad import Question
from bigqa.tasks.windows import Lengths

Array = np.ndarray[Any, Any]
Logits = tuple[int, Array, Array]
COLUMNS = ["question", "context_begin", "context_end", "offset_start", "offset_end", "max_context_lo", "max_context_hi"]
Span = tuple[float, int, int]
"""Score, and the span in characters of the context."""


def decode(
    questions: Iterable[Question],
    windows: Rows,
    logits: Iterable[Logits],
    lengths: Lengths,
    n_best: int = 20,
    null_threshold: float | None = None,
) -> tuple[dict[str, str], dict[str, list[dict[str, Any]]]]:
    """Return `{id: text}` and n-best lists. `logits`: (window, start logits, end logits) of every window, in order.

    `null_threshold`: by how much no answer must score above the best one; None: every question has an answer.
    """
    answers: dict[str, str] = {}
    nbest: dict[str, list[dict[str, Any]]] = {}
    # Every question has at least one window, so the two streams go in step.
    found = _spans_by_question(windows, logits, lengths, n_best)
    for question, (spans, null_score) in zip(questions, found, strict=True):
        if null_threshold is None:
            nbest[question.id] = _candidates(spans, question.context, n_best)
            answers[question.id] = nbest[question.id][0]["text"]
        else:
            nbest[question.id] = _candidates(spans, question.context, n_best, null_score)
            answers[question.id] = answer_of(nbest[question.id], null_threshold)
    return answers, nbest


def _spans_by_question(
    windows: Rows, logits: Iterable[Logits], lengths: Lengths, n_best: int
) -> Iterator[tuple[list[Span], float]]:
    """Yield each question's spans, and the score of no answer: that of the first token, least of its windows."""
    pairs = zip(windows.only(COLUMNS), logits, strict=True)
    for _, group in groupby(pairs, key=lambda pair: int(pair[0]["question"])):
        spans, null_score = [], float("inf")
        for row, (_, start, end) in group:
            spans += _spans(row, start, end, lengths, n_best)
            null_score = min(null_score, float(start[0]) + float(end[0]))
        yield spans, null_score


def _spans(row: dict[str, Any], start_S: Array, end_S: Array, lengths: Lengths, n_best: int) -> list[Span]:
    begin, stop = int(row["context_begin"]), int(row["context_end"])
    if stop == begin:
        return []
    starts, ends = _best(start_S[begin:stop], n_best), _best(end_S[begin:stop], n_best)
    wide = (starts + begin >= row["max_context_lo"]) & (starts + begin < row["max_context_hi"])
    size_SE = ends[None, :] - starts[:, None] + 1
    allowed_SE = wide[:, None] & (size_SE >= 1) & (size_SE <= lengths.max_answer_length)
    score_SE = start_S[begin:stop][starts][:, None] + end_S[begin:stop][ends][None, :]
    first, last = np.nonzero(allowed_SE)
    offset_start, offset_end = np.asarray(row["offset_start"]), np.asarray(row["offset_end"])
    found = score_SE[first, last], offset_start[starts[first]], offset_end[ends[last]]
    return list(zip(*(values.tolist() for values in found), strict=True))


def _best(logits: Array, count: int) -> Array:
    return np.argsort(-logits, kind="stable")[:count]


def _candidates(spans: list[Span], context: str, n_best: int, null_score: float | None = None) -> list[dict[str, Any]]:
    """Return the best texts; with the score of no answer, that as "" in its place, beside `n_best` of the others."""
    kept: dict[str, Span] = {}
    for span in sorted(spans, key=lambda span: (-span[0], span[1], span[2])):
        if null_score is None or span[1] < span[2]:
            kept.setdefault(context[span[1] : span[2]], span)
        if len(kept) == n_best:
            break
    if null_score is not None:
        kept[""] = (null_score, 0, 0)
        kept = dict(sorted(kept.items(), key=lambda item: -item[1][0]))
    if not kept:
        return [{"text": "", "probability": 1.0, "score": 0.0}]
    scores = np.array([span[0] for span in kept.values()])
    weights = np.exp(scores - scores.max())
    shares = weights / weights.sum()
    return [
        {"text": text, "probability": float(share), "score": span[0], "start": span[1]}
        for (text, span), share in zip(kept.items(), shares, strict=True)
    ]
