"""Answers out of logits, against a plain search over all spans."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bigqa.tasks.postprocess import decode
from bigqa.tasks.rows import Rows
from bigqa.tasks.squad import Question
from bigqa.tasks.windows import Lengths

CONTEXT = "가나다라마바사아자차카타파하거너더러머버"
QUESTION = Question("q", "?", CONTEXT, (), "")


def row(question: int, first: int, size: int, lo: int, hi: int) -> dict[str, Any]:
    """Return a window of one-character tokens behind three tokens of question."""
    return {
        "question": question,
        "context_begin": 3,
        "context_end": 3 + size,
        "offset_start": list(range(first, first + size)),
        "offset_end": list(range(first + 1, first + size + 1)),
        "max_context_lo": 3 + lo - first,
        "max_context_hi": 3 + hi - first,
    }


def run(rows: list[dict[str, Any]], logits: list[Any], lengths: Lengths, questions: list[Question], n_best: int) -> Any:
    stream = ((index, start, end) for index, (start, end) in enumerate(logits))
    return decode(questions, Rows(pa.Table.from_pylist(rows)), stream, lengths, n_best)


def brute_force(rows: list[dict[str, Any]], logits: list[Any], longest: int, n_best: int) -> list[tuple[str, float]]:
    best: dict[str, float] = {}
    for one, (start, end) in zip(rows, logits, strict=True):
        context = range(one["context_begin"], one["context_end"])
        starts = sorted(context, key=lambda i: (-start[i], i))[:n_best]
        ends = sorted(context, key=lambda i: (-end[i], i))[:n_best]
        for i in starts:
            for j in ends:
                if one["max_context_lo"] <= i < one["max_context_hi"] and i <= j < i + longest:
                    text = CONTEXT[one["offset_start"][i - 3] : one["offset_end"][j - 3]]
                    best[text] = max(best.get(text, -math.inf), float(start[i]) + float(end[j]))
    return sorted(best.items(), key=lambda item: -item[1])[:n_best] or [("", 0.0)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n_best", [3, 20])
def test_n_best_lists_are_those_of_a_plain_search(seed: int, n_best: int) -> None:
    numbers = np.random.default_rng(seed)
    rows = [row(0, 0, 12, 0, 9), row(0, 6, 14, 9, 20)]
    logits = [tuple(numbers.normal(size=(2, one["context_end"] + 1)).astype(np.float32)) for one in rows]
    answers, nbest = run(rows, logits, Lengths(max_answer_length=4), [QUESTION], n_best)
    expected = brute_force(rows, logits, 4, n_best)
    assert [candidate["text"] for candidate in nbest["q"]] == [text for text, _ in expected]
    assert [candidate["score"] for candidate in nbest["q"]] == pytest.approx([score for _, score in expected])
    assert answers["q"] == expected[0][0]
    weights = [math.exp(score) for _, score in expected]
    shares = [weight / sum(weights) for weight in weights]
    assert [candidate["probability"] for candidate in nbest["q"]] == pytest.approx(shares, rel=1e-5)


def peak(size: int, place: int, height: float = 9.0) -> Any:
    logits = np.zeros(size, np.float32)
    logits[place] = height
    return logits


def test_a_start_without_its_widest_surroundings_is_left_to_the_other_window() -> None:
    rows = [row(0, 0, 12, 0, 9), row(0, 6, 14, 9, 20)]
    logits = [(peak(15, 3 + 10), peak(15, 3 + 11)), (np.zeros(17, np.float32), np.zeros(17, np.float32))]
    answers, _ = run(rows, logits, Lengths(), [QUESTION], 20)
    assert answers["q"] != CONTEXT[10:12]


def test_the_question_and_the_special_tokens_are_never_an_answer() -> None:
    answers, _ = run([row(0, 0, 5, 0, 5)], [(peak(8, 1), peak(8, 1))], Lengths(), [QUESTION], 20)
    assert answers["q"] in CONTEXT[:5]


def test_questions_keep_their_order_and_their_windows() -> None:
    questions = [QUESTION, Question("r", "?", CONTEXT, (), "")]
    rows = [row(0, 0, 5, 0, 5), row(1, 0, 5, 0, 2), row(1, 2, 5, 2, 7)]
    logits = [(peak(8, 3), peak(8, 4)), (peak(8, 3, 1), peak(8, 3, 1)), (peak(8, 6), peak(8, 7))]
    answers, _ = run(rows, logits, Lengths(), questions, 20)
    assert answers == {"q": "가나", "r": CONTEXT[5:7]}


def test_where_no_span_is_allowed_the_answer_is_empty() -> None:
    answers, nbest = run([row(0, 0, 0, 0, 0)], [(peak(4, 0), peak(4, 0))], Lengths(), [QUESTION], 20)
    assert answers == {"q": ""} and nbest["q"][0]["probability"] == 1.0


def test_twenty_candidates_are_kept_unless_another_number_is_asked_for() -> None:
    rows = [row(0, 0, 20, 0, 20)]
    logits = np.linspace(0.0, 1.0, 23)
    stream = [(0, logits, logits[::-1])]
    _, nbest = decode([QUESTION], Rows(pa.Table.from_pylist(rows)), stream, Lengths())
    assert len(nbest["q"]) == 20
