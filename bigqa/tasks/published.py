"""The best score within reach of BERT's published question-answering scripts, for comparison with bigqa's own ceiling.

In: questions and a fast WordPiece tokenizer. Out: for each question the text that those scripts would print for their
own training span. They start from whole words and narrow them to pieces equal to the answer's own pieces, and they
find the text again by aligning pieces with words: pieces inside a word, and words with an unknown piece, are lost to
them. bigqa cuts the context at the tokenizer's character offsets instead, and loses neither.
"""

from collections.abc import Sequence
from typing import Any

from bigqa.tasks.squad import Question
from bigqa.tasks.windows import answer_tokens

WORD_BREAKS = " \t\r\n\u202f"
"""What those scripts split words on; every other space is part of a word."""


def is_wordpiece(tokenizer: Any) -> bool:
    """Say whether the published scripts, which know BERT's vocabularies alone, could use this one."""
    return type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece"


def published_answers(questions: Sequence[Question], tokenizer: Any, max_answer_length: int) -> dict[str, str]:
    """Return `{id: text}`; "" for a span of more than `max_answer_length` tokens.

    Source: `run_squad.py` of google-research/bert, by whose rules Enliple's scripts go.
    """
    backend = tokenizer.backend_tokenizer
    encoded: dict[str, Any] = {}
    answers = {}
    for question in questions:
        if question.context not in encoded:
            encoded[question.context] = backend.encode(question.context, add_special_tokens=False)
        found = encoded[question.context]
        first, last = _training_span(question, found, backend)
        fits = last - first < max_answer_length
        answers[question.id] = _aligned_text(question.context, found, first, last, backend) if fits else ""
    return answers


def _training_span(question: Question, encoded: Any, backend: Any) -> tuple[int, int]:
    answer = question.answers[0]
    begin, end = _whole_words(question.context, answer.start, answer.start + len(answer.text))
    first, last = answer_tokens(encoded.offsets, begin, end)
    wanted = backend.encode(answer.text, add_special_tokens=False).tokens
    for start in range(first, last + 1):
        for stop in range(last, start - 1, -1):
            if encoded.tokens[start : stop + 1] == wanted:
                return start, stop
    return first, last


def _whole_words(context: str, begin: int, end: int) -> tuple[int, int]:
    while begin > 0 and context[begin - 1] not in WORD_BREAKS:
        begin -= 1
    while end < len(context) and context[end] not in WORD_BREAKS:
        end += 1
    return begin, end


def _aligned_text(context: str, encoded: Any, first: int, last: int, backend: Any) -> str:
    """Return the stretch of whole words that spells the pieces, or all of those words where none does."""
    begin, end = _whole_words(context, encoded.offsets[first][0], encoded.offsets[last][1])
    words = " ".join(context[begin:end].split())
    pieces = " ".join(encoded.tokens[first : last + 1]).replace(" ##", "").replace("##", "")
    spaced = " ".join(token for token, _ in backend.pre_tokenizer.pre_tokenize_str(_normalized(words, backend)))
    start = spaced.find(pieces)
    places, spaced_places = _visible(words), _visible(spaced)
    if start < 0 or len(places) != len(spaced_places):
        return words
    number_of = {place: number for number, place in enumerate(spaced_places)}
    stop = start + len(pieces) - 1
    if start not in number_of or stop not in number_of:
        return words
    return words[places[number_of[start]] : places[number_of[stop]] + 1]


def _normalized(text: str, backend: Any) -> str:
    return str(backend.normalizer.normalize_str(text)) if backend.normalizer else text


def _visible(text: str) -> list[int]:
    return [place for place, character in enumerate(text) if character != " "]
