"""Windows against the tokenizer's own overflow, and their geometry against plain brute force."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigqa.errors import BigqaError
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.tasks.squad import read_questions
from bigqa.tasks.windows import (
    Lengths,
    answer_tokens,
    learn_template,
    make_windows,
    max_context_ranges,
    target,
    window_starts,
)

SAMPLE = Path(__file__).parents[1] / "bigqa" / "sample" / "dev.json"
LENGTHS = Lengths(seq_len=80, doc_stride=20, max_query_length=32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve("tiny"))


def test_windows_are_those_of_the_tokenizers_own_overflow(tokenizer: Any) -> None:
    template = learn_template(tokenizer)
    for question in read_questions(SAMPLE, need_answers=True, limit=40):
        query = tokenizer(question.question, add_special_tokens=False)["input_ids"]
        context = tokenizer(question.context, add_special_tokens=False)["input_ids"]
        ours = list(make_windows(query, context, template, LENGTHS))
        room = LENGTHS.seq_len - 3 - len(query)
        theirs = tokenizer(
            question.question,
            question.context,
            truncation="only_second",
            max_length=LENGTHS.seq_len,
            stride=room - LENGTHS.doc_stride,  # theirs counts the tokens that two windows share
            return_overflowing_tokens=True,
        )
        assert [window.input_ids for window in ours] == theirs["input_ids"]
        assert [window.token_type_ids for window in ours] == theirs["token_type_ids"]


def test_windows_of_a_hand_worked_case() -> None:
    # [CLS] q q [SEP] c0 c1 c2 [SEP], then a slice that begins 2 tokens later and holds the rest.
    assert window_starts(5, room=3, stride=2) == [0, 2]
    assert window_starts(3, room=3, stride=2) == [0]
    assert window_starts(4, room=3, stride=9) == [0, 3]  # a stride past the room would lose tokens


def test_max_context_of_a_hand_worked_case() -> None:
    # Slices [0, 6) and [3, 9). Token 4 has min(4, 1) = 1 in the first and min(1, 4) = 1 in the second: the first wins.
    assert max_context_ranges([0, 3], [6, 6]) == [(0, 5), (5, 9)]


@given(st.integers(1, 400), st.integers(1, 90), st.integers(1, 120))
def test_every_token_is_in_the_slice_with_its_widest_surroundings(total: int, room: int, stride: int) -> None:
    starts = window_starts(total, room, stride)
    sizes = [min(room, total - start) for start in starts]
    ranges = max_context_ranges(starts, sizes)
    assert [lo for lo, _ in ranges] == [0, *(hi for _, hi in ranges[:-1])] and ranges[-1][1] == total
    for token in range(total):
        scores = [
            min(token - start, start + size - 1 - token) + 0.01 * size if start <= token < start + size else -1.0
            for start, size in zip(starts, sizes, strict=True)
        ]
        lo, hi = ranges[scores.index(max(scores))]
        assert lo <= token < hi


@pytest.mark.parametrize(
    ("begin", "end", "tokens"),
    [
        (0, 2, (0, 0)),  # exactly a token
        (0, 3, (0, 1)),  # exactly two
        (1, 3, (0, 1)),  # inside the first: the smallest span that covers it
        (4, 5, (2, 2)),  # inside one token
        (3, 4, (-1, -1)),  # a space, which is no token
    ],
)
def test_the_span_of_an_answer(begin: int, end: int, tokens: tuple[int, int]) -> None:
    offsets = [(0, 2), (2, 3), (4, 7)]
    assert answer_tokens(offsets, begin, end) == tokens


def test_the_answers_of_the_sample_are_given_exactly(tokenizer: Any) -> None:
    template = learn_template(tokenizer)
    for question in read_questions(SAMPLE, need_answers=True, limit=40):
        encoded = tokenizer(question.context, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        answer = question.answers[0]
        span = answer_tokens(offsets, answer.start, answer.start + len(answer.text))
        held = 0
        for window in make_windows([9, 9], encoded["input_ids"], template, LENGTHS):
            start, end = target(window, *span)
            if end == 0:
                continue
            held += 1
            shift = window.first_token - window.context_begin
            assert question.context[offsets[start + shift][0] : offsets[end + shift][1]] == answer.text
        assert held >= 1


def test_no_room_for_the_context_is_refused(tokenizer: Any) -> None:
    with pytest.raises(BigqaError, match="leaves no room"):
        list(make_windows([5] * 20, [6], learn_template(tokenizer), Lengths(seq_len=16, max_query_length=20)))
