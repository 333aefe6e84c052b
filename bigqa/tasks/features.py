"""Windows of a data set as memory-mapped Arrow files. In: a data set, a tokenizer, lengths. Out: rows.

Tokenized by the tokenizer's own threads and written in small batches, so that memory stays flat however long the data.
The cache's key covers the data, the tokenizer, every length and the form of the rows; a file appears under its name
only when whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigqa.files import atomic_path
from bigqa.tasks.caching import is_whole, plain_name, read_into, write_rows
from bigqa.tasks.documents import data_files
from bigqa.tasks.rows import Rows
from bigqa.tasks.squad import DATA, Question, iter_questions
from bigqa.tasks.windows import Lengths, Template, answer_tokens, learn_template, make_windows, question_tokens, target

FORM = 1
"""Raised whenever the rows change."""
BATCH_QUESTIONS = 256
BATCH_CHARACTERS = 500_000
"""Questions, and characters of their contexts, that are tokenized at once: whichever is reached first."""
BATCH_ROWS = 1024
"""Windows that are Python objects at once."""
INT_LIST = pa.list_(pa.int32())
TRAINING_FIELDS = {
    "input_ids": INT_LIST,
    "token_type_ids": pa.list_(pa.int8()),
    "start": pa.int32(),
    "end": pa.int32(),
    "question": pa.int32(),
}
PREDICTION_FIELDS = TRAINING_FIELDS | {
    "context_begin": pa.int32(),
    "context_end": pa.int32(),
    "offset_start": INT_LIST,
    "offset_end": INT_LIST,
    "max_context_lo": pa.int32(),
    "max_context_hi": pa.int32(),
}
Row = dict[str, Any]


def build_features(
    path: Path,
    tokenizer: Any,
    lengths: Lengths,
    *,
    training: bool,
    cache_dir: Path,
    limit: int | None = None,
    with_targets: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Rows:
    """Return a data set's windows, from the cache where they were made before.

    For training: token ids and targets. Else also what it takes to read answers off; with targets where wanted.
    `on_progress` takes the questions done and all of them.
    """
    key = _key(path, tokenizer, lengths, training=training, limit=limit, with_targets=with_targets)
    file = cache_dir / f"{plain_name(path)}-{key}.arrow"
    if not is_whole(file):
        need_answers = training or with_targets
        # Read twice: a fault in the last document is found before an hour goes into the first, and the total is known.
        total = sum(1 for _ in islice(iter_questions(path, need_answers=need_answers), limit))
        questions = islice(iter_questions(path, need_answers=need_answers), limit)
        rows = _rows(questions, tokenizer, lengths, training=training)
        with atomic_path(file) as temporary:
            schema = pa.schema(list((TRAINING_FIELDS if training else PREDICTION_FIELDS).items()))
            write_rows(temporary, rows, schema, _reporter(on_progress, total))
    return Rows.of_file(file)


def window_lengths(windows: Rows) -> list[int]:
    """Return the tokens of each window."""
    return windows.lengths("input_ids")


def _reporter(on_progress: Callable[[int, int], None] | None, total: int) -> Callable[[Row], None]:
    def report(row: Row) -> None:
        if on_progress is not None:
            on_progress(row["question"] + 1, total)

    return report


def _rows(questions: Iterator[Question], tokenizer: Any, lengths: Lengths, *, training: bool) -> Iterator[Row]:
    template = learn_template(tokenizer)
    number = 0
    for batch in _batches(questions):
        contexts = {question.context: None for question in batch}
        encoded = tokenizer.backend_tokenizer.encode_batch(list(contexts), add_special_tokens=False)
        tokens = {context: (found.ids, found.offsets) for context, found in zip(contexts, encoded, strict=True)}
        for question, query_ids in zip(batch, question_tokens(tokenizer, batch), strict=True):
            ids, offsets = tokens[question.context]
            for row in _rows_of(question, query_ids, ids, offsets, template, lengths, training=training):
                yield row | {"question": number}
            number += 1


def _batches(questions: Iterable[Question]) -> Iterator[list[Question]]:
    batch: list[Question] = []
    contexts: set[str] = set()
    characters = 0
    for question in questions:
        new = 0 if question.context in contexts else len(question.context)
        if batch and (len(batch) == BATCH_QUESTIONS or characters + new > BATCH_CHARACTERS):
            yield batch
            batch, contexts, characters, new = [], set(), 0, len(question.context)
        batch.append(question)
        contexts.add(question.context)
        characters += new
    if batch:
        yield batch


def _rows_of(
    question: Question,
    query_ids: list[int],
    ids: list[int],
    offsets: list[tuple[int, int]],
    template: Template,
    lengths: Lengths,
    *,
    training: bool,
) -> Iterator[Row]:
    span = (-1, -1)
    if question.answers:
        answer = question.answers[0]
        span = answer_tokens(offsets, answer.start, answer.start + len(answer.text))
    for window in make_windows(query_ids, ids, template, lengths):
        start, end = target(window, *span)
        row: Row = {
            "input_ids": window.input_ids,
            "token_type_ids": window.token_type_ids,
            "start": start,
            "end": end,
        }
        if not training:
            size = window.context_end - window.context_begin
            part = offsets[window.first_token : window.first_token + size]
            row |= {
                "context_begin": window.context_begin,
                "context_end": window.context_end,
                "offset_start": [a for a, _ in part],
                "offset_end": [b for _, b in part],
                "max_context_lo": window.max_context_lo,
                "max_context_hi": window.max_context_hi,
            }
        yield row


def _key(path: Path, tokenizer: Any, lengths: Lengths, **settings: bool | int | None) -> str:
    digest = _of_files(path)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps([FORM, lengths.model_dump(), settings], sort_keys=True).encode())
    return digest.hexdigest()[:24]


def data_digest(path: Path) -> str:
    """Return a digest of every byte of a data set, wherever it lies. Raises: BigqaError."""
    return _of_files(path).hexdigest()[:32]


def _of_files(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for file in data_files(path, DATA):
        read_into(digest, file)
    return digest
