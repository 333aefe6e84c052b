"""Windows of a data file as memory-mapped Arrow files. In: a data file, a tokenizer, lengths. Out: a dataset.

Tokenized by the tokenizer's own threads, written in batches of paragraphs, so that memory stays flat. The cache's key
covers the data, the tokenizer, every length and the form of the rows; a file appears under its name only when whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from bigqa.errors import BigqaError
from bigqa.files import atomic_path
from bigqa.tasks.squad import Question, read_questions
from bigqa.tasks.windows import Lengths, Template, answer_tokens, learn_template, make_windows, question_tokens, target

FORM = 1
"""Raised whenever the rows change."""
BATCH_QUESTIONS = 256
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
) -> datasets.Dataset:
    """Return a file's windows, from the cache where they were made before.

    For training: token ids and targets. Else also what it takes to read answers off; with targets where wanted.
    """
    key = _key(path, tokenizer, lengths, training=training, limit=limit, with_targets=with_targets)
    file = cache_dir / f"{path.stem}-{key}.arrow"
    if not _is_whole(file):
        questions = read_questions(path, need_answers=training or with_targets, limit=limit)
        with atomic_path(file) as temporary:
            _write(temporary, questions, tokenizer, lengths, training=training, on_progress=on_progress)
    return datasets.Dataset.from_file(str(file))


def window_lengths(windows: datasets.Dataset) -> list[int]:
    """Return the tokens of each window."""
    return list(pc.list_value_length(windows.data.column("input_ids")).to_pylist())


def _write(
    file: Path,
    questions: list[Question],
    tokenizer: Any,
    lengths: Lengths,
    *,
    training: bool,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    schema = pa.schema(list((TRAINING_FIELDS if training else PREDICTION_FIELDS).items()))
    template = learn_template(tokenizer)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for begin in range(0, len(questions), BATCH_QUESTIONS):
            batch = questions[begin : begin + BATCH_QUESTIONS]
            rows = list(_rows(batch, begin, tokenizer, template, lengths, training=training))
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
            if on_progress is not None:
                on_progress(begin + len(batch), len(questions))


def _rows(
    questions: list[Question], first: int, tokenizer: Any, template: Template, lengths: Lengths, *, training: bool
) -> Iterator[Row]:
    contexts = {question.context: None for question in questions}
    encoded = tokenizer.backend_tokenizer.encode_batch(list(contexts), add_special_tokens=False)
    tokens = {context: (found.ids, found.offsets) for context, found in zip(contexts, encoded, strict=True)}
    for index, (question, query_ids) in enumerate(zip(questions, question_tokens(tokenizer, questions), strict=True)):
        ids, offsets = tokens[question.context]
        span = (-1, -1)
        if question.answers:
            answer = question.answers[0]
            span = answer_tokens(offsets, question.context, answer.text, answer.start)
        for window in make_windows(query_ids, ids, template, lengths):
            start, end = target(window, *span)
            row: Row = {
                "input_ids": window.input_ids,
                "token_type_ids": window.token_type_ids,
                "start": start,
                "end": end,
                "question": first + index,
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
    digest = hashlib.sha256()
    try:
        digest.update(path.read_bytes())
    except OSError as error:
        raise BigqaError(f"the data file cannot be read: {path}: {error.strerror}") from None
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps([FORM, lengths.model_dump(), settings], sort_keys=True).encode())
    return digest.hexdigest()[:24]


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with pa.memory_map(str(file)) as source:
            for _ in pa.ipc.open_stream(source):
                pass
    except (pa.ArrowInvalid, OSError):
        return False
    return True
