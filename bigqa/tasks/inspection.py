"""What a data file looks like to a vocabulary, before any training. In: a file, a tokenizer, lengths. Out: figures.

The ceiling is the score of a model that always picks the best token span, read off through the same windows and the
same post-processing as real predictions: no training with this vocabulary and these lengths can beat it. The published
ceiling is that of BERT's published scripts, whose way back from pieces to text loses answers that offsets keep.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigqa.tasks import korquad1
from bigqa.tasks.features import build_features, window_lengths
from bigqa.tasks.postprocess import Logits, decode
from bigqa.tasks.published import is_wordpiece, published_answers
from bigqa.tasks.rows import Rows
from bigqa.tasks.squad import Question, read_questions
from bigqa.tasks.windows import Lengths

PERCENTILES = (5, 25, 50, 75, 95, 100)
PADDED_TO = (384, 512)


def inspect_file(path: Path, tokenizer: Any, lengths: Lengths) -> dict[str, Any]:
    """Return counts, length percentiles, padding, answers out of reach, and the ceilings."""
    questions = read_questions(path, need_answers=True)
    published = _published(questions, tokenizer, lengths)
    with tempfile.TemporaryDirectory() as folder:
        found = {"counts": _counts(questions), "percentiles_tokens": _percentiles(questions, tokenizer)}
        for seq_len in sorted({*PADDED_TO, lengths.seq_len}):
            if lengths.max_query_length + lengths.doc_stride + 3 > seq_len:
                continue
            at = lengths.model_copy(update={"seq_len": seq_len})
            found[f"seq_{seq_len}"] = _at_length(path, questions, tokenizer, at, Path(folder), published)
    return found


def _counts(questions: list[Question]) -> dict[str, int]:
    impossible = sum(1 for question in questions if not question.answers)
    return {
        "articles": len({question.title for question in questions}),
        "paragraphs": len({question.context for question in questions}),
        "questions": len(questions),
        **({"unanswerable": impossible} if impossible else {}),
        "answers": sum(len(question.answers) for question in questions),
    }


def _percentiles(questions: list[Question], tokenizer: Any) -> dict[str, dict[str, int]]:
    texts = {
        "question": [question.question for question in questions],
        "context": list({question.context: None for question in questions}),
        "answer": [question.answers[0].text for question in questions if question.answers],
    }
    return {name: _spread(_sizes(values, tokenizer)) for name, values in texts.items()}


def _sizes(texts: list[str], tokenizer: Any) -> list[int]:
    return [len(found.ids) for found in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def _spread(sizes: list[int]) -> dict[str, int]:
    values = np.percentile(sizes, PERCENTILES, method="nearest")
    return {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, values, strict=True)}


def _at_length(
    path: Path,
    questions: list[Question],
    tokenizer: Any,
    lengths: Lengths,
    folder: Path,
    published: dict[str, str] | None,
) -> dict[str, Any]:
    windows = build_features(path, tokenizer, lengths, training=False, cache_dir=folder, with_targets=True)
    sizes = window_lengths(windows)
    reached = {int(row["question"]) for row in _targets(windows) if row["end"] > 0}
    answers, _ = decode(questions, windows, _perfect_logits(windows, sizes), lengths)
    # Whether a question can be answered at all is no matter of the vocabulary.
    golds = {question.id: [answer.text for answer in question.answers] for question in questions if question.answers}
    found = {
        "windows": len(windows),
        "window_tokens": _spread(sizes),
        "padding_share": 1 - sum(sizes) / (len(sizes) * lengths.seq_len),
        "answers_out_of_reach_share": 1 - len(reached) / len(golds),
    } | _ceiling("ceiling", golds, answers)
    if published is not None:
        # An answer that no window holds is out of the published scripts' reach as well.
        kept = {q.id: published[q.id] if number in reached else "" for number, q in enumerate(questions) if q.answers}
        found |= _ceiling("published_ceiling", golds, kept)
    return found


def _published(questions: list[Question], tokenizer: Any, lengths: Lengths) -> dict[str, str] | None:
    if not is_wordpiece(tokenizer):
        return None
    return published_answers([one for one in questions if one.answers], tokenizer, lengths.max_answer_length)


def _ceiling(name: str, golds: dict[str, list[str]], answers: dict[str, str]) -> dict[str, float]:
    score = korquad1.score(golds, answers)
    return {f"{name}_em": score.exact_match, f"{name}_f1": score.f1}


def _targets(windows: Rows) -> Iterator[dict[str, Any]]:
    return iter(windows.only(["question", "start", "end"]))


def _perfect_logits(windows: Rows, sizes: list[int]) -> Iterator[Logits]:
    for number, (row, size) in enumerate(zip(_targets(windows), sizes, strict=True)):
        start, end = np.zeros(size, np.float32), np.zeros(size, np.float32)
        if row["end"] > 0:
            start[row["start"]] = end[row["end"]] = 1.0
        yield number, start, end
