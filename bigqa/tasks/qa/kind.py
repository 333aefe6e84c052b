"""The task `qa`, extractive question answering: what is read, asked and scored. See `bigqa.tasks.base.TaskKind`.

KorQuAD 1.0, 2.x and SQuAD-like data are told apart by what a file holds, not by an option: today's words for them
(`--task korquad1`) are words for this task.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bigqa.errors import BigqaError, UsageError
from bigqa.files import cache_folder, read_json, write_json
from bigqa.language import tr
from bigqa.tasks import examples, nulls
from bigqa.tasks.base import Ask, Counted, Progress, Row, Scored, TaskKind, Tokens
from bigqa.tasks.coverage import check_text
from bigqa.tasks.features import build_features, window_lengths
from bigqa.tasks.heads import SPANS
from bigqa.tasks.inspection import inspect_file
from bigqa.tasks.postprocess import decode
from bigqa.tasks.rows import Rows
from bigqa.tasks.scoring import METRICS, as_record, key_of, measure_of, metric_of, read_golds
from bigqa.tasks.squad import Question, has_impossible, iter_questions
from bigqa.tasks.windows import Lengths

N_BEST = 20
NBEST = "nbest.json"
"""Of a run's folder: {id: its best texts}, with probabilities, on its dev file."""
LEAST = 1e-12
"""A probability that counts as none."""
COLUMNS = ("input_ids", "token_type_ids", "start", "end")
"""What a batch is made of; the other columns of the features serve to read answers off the logits."""


class QaOptions(Lengths):
    """What question answering reads of a run's settings."""

    null_threshold: float | None = None
    """See `tasks.nulls`; none: every question has an answer."""


class Qa(TaskKind[QaOptions]):
    """Questions on contexts; spans of them."""

    name = "qa"
    head = SPANS
    watched = "f1"
    score_names = frozenset({"exact_match", *(key_of(metric.overlap) for metric in METRICS.values())})
    pipeline = "question-answering"
    lost_words = (tr("answers"), tr("out of reach"))
    answer_words = tr("answers")
    columns = COLUMNS
    options_type = QaOptions

    def check(self, options: QaOptions) -> None:
        """Refuse windows that hold no context."""
        if options.max_query_length + options.doc_stride > options.seq_len - 3:
            raise UsageError(
                tr(
                    "--seq-len {seq_len} is too short for --max-query-length {max_query_length} and "
                    "--doc-stride {doc_stride}: need their sum and 3 special tokens",
                    seq_len=options.seq_len,
                    max_query_length=options.max_query_length,
                    doc_stride=options.doc_stride,
                )
            )

    def settled(self, options: QaOptions, files: Sequence[Path]) -> QaOptions:
        """Give a threshold where a run has met questions without an answer, or is to be scored on such."""
        if not any(map(has_impossible, files)):
            return options
        return options.model_copy(update={"null_threshold": nulls.DEFAULT})

    def watched_on(self, file: Path | None) -> str:
        """Return the measure beside exact match that the data have."""
        return key_of(METRICS[metric_of(file)].overlap) if file is not None else self.watched

    def check_file(self, file: Path, options: QaOptions, config: Any) -> None:
        """Read a file's questions and answers through."""
        read_golds(file, metric_of(file))
        for _ in iter_questions(file, need_answers=False):
            pass

    def check_text(self, file: Path, tokenizer: Any, options: QaOptions, *, refuse: bool = True) -> str | None:
        """Look at the first questions and their contexts."""
        return check_text(file, tokenizer, refuse=refuse)

    def features(
        self, file: Path, tokenizer: Any, options: QaOptions, config: Any, *, cache_dir: Path, limit: int | None = None,
        on_progress: Progress | None = None,
    ) -> Rows:  # fmt: skip
        """Return windows with their targets."""
        return build_features(
            file, tokenizer, options, training=True, cache_dir=cache_dir, limit=limit, on_progress=on_progress
        )

    def task(self, model: Any, options: QaOptions, tokens: Tokens, config: Any = None) -> Any:
        """Return the loss for a model."""
        from bigqa.tasks.qa.task import QuestionAnswering, separator_for

        takes_types = (getattr(config or model.config, "type_vocab_size", 0) or 0) > 1
        separator = separator_for(model, tokens.separator)
        return QuestionAnswering(tokens.pad, takes_types, tokens.first_position, separator)

    def full_rows(self, count: int, seq_len: int, vocabulary_size: int) -> Rows:
        """Return windows of random tokens, each with an answer of two."""
        random = np.random.default_rng(42)
        starts = np.arange(count) % (seq_len - 2)
        columns = {
            "input_ids": list(random.integers(0, vocabulary_size, (count, seq_len))),
            "token_type_ids": list(np.zeros((count, seq_len), np.int64)),
            "start": starts,
            "end": starts + 1,
        }
        return Rows.of_columns(columns)

    def predict(
        self, file: Path, tokenizer: Any, options: QaOptions, config: Any, ask: Ask, task: Any
    ) -> Iterator[Row]:
        """Yield each question's answer: one forward pass over its windows, one document in memory at a time."""
        yield from self._predicted(file, tokenizer, options, ask, task)

    def _predicted(
        self, file: Path, tokenizer: Any, options: QaOptions, ask: Ask, task: Any, limit: int | None = None
    ) -> Iterator[Row]:
        cache_dir = cache_folder() / "features"
        windows = build_features(file, tokenizer, options, training=False, cache_dir=cache_dir, limit=limit)
        inputs = windows.only([name for name in COLUMNS if name in windows.names])
        logits = ask(task, inputs, window_lengths(windows))
        questions = islice(iter_questions(file, need_answers=False), limit)
        threshold = options.null_threshold
        answers, nbest = decode(questions, windows, logits, options, n_best=N_BEST, null_threshold=threshold)  # type: ignore[arg-type]
        for name, text in answers.items():
            yield {"id": name, "text": text, "nbest": nbest[name]}

    def write(self, answers: Iterator[Row], output: Path, more: Mapping[str, Path]) -> int:
        """Write {id: text}, as the official scripts read it; under "nbest", n-best lists with probabilities."""
        found = list(answers)
        write_json(output, {one["id"]: one["text"] for one in found})
        if "nbest" in more:
            write_json(more["nbest"], {one["id"]: one["nbest"] for one in found})
        return len(found)

    def score(
        self, file: Path, tokenizer: Any, options: QaOptions, config: Any, ask: Ask, task: Any, *,
        limit: int | None = None,
    ) -> Scored:  # fmt: skip
        """Score as the official script of the data does; a threshold is chosen on the file itself."""
        found = list(self._predicted(file, tokenizer, options, ask, task, limit))
        return _scored(file, {one["id"]: one["nbest"] for one in found}, options, limit)

    def together(self, runs: Sequence[Path], file: Path, options: QaOptions, config: Mapping[str, Any]) -> Scored:
        """Answer by the mean probability that runs give to a text."""
        each = [read_json(run / NBEST, "a run's n-best lists") for run in runs]
        return _scored(file, {name: _mean_of([one[name] for one in each]) for name in each[0]}, options)

    def headline(self, scores: Mapping[str, Any]) -> str:
        """Say exact matches and overlap."""
        overlap = METRICS[scores["metric"]].overlap
        figures = tr(
            "EM {exact:.2f} · {overlap} {share:.2f}",
            exact=scores["exact_match"],
            overlap=overlap,
            share=scores[key_of(overlap)],
        )
        return tr("{figures} on {count} questions", figures=figures, count=scores["total"])

    def count(self, file: Path, tokenizer: Any, options: QaOptions) -> Counted:
        """Count windows, and the answers that none of them holds."""
        found = inspect_file(file, tokenizer, options)
        at = {int(name[4:]): value for name, value in found.items() if name.startswith("seq_")}
        lost = {length: value["answers_out_of_reach_share"] for length, value in at.items()}
        return Counted(at[options.seq_len]["windows"], lost)


def _scored(file: Path, nbest: Mapping[str, nulls.Candidates], options: QaOptions, limit: int | None = None) -> Scored:
    """Score n-best lists on a file, or on its first questions; a threshold is chosen on them."""
    metric, chosen = metric_of(file), {}
    if options.null_threshold is None:
        answers = {name: str(candidates[0]["text"]) for name, candidates in nbest.items()}
    else:
        threshold = nulls.best_threshold(nbest, measure_of(file, metric))
        chosen = {"null_threshold": threshold}
        answers = {name: nulls.answer_of(candidates, threshold) for name, candidates in nbest.items()}
    golds = read_golds(file, metric)
    asked = golds if limit is None else {name: golds[name] for name in answers}
    score = as_record(METRICS[metric].score(asked, answers), metric)
    kept = {name: [_short(one) for one in candidates] for name, candidates in nbest.items()}
    files = {
        "predictions.json": lambda path: write_json(path, answers),
        NBEST: lambda path: write_json(path, kept, indent=None),
        examples.FILE: lambda path: _write_examples(path, file, answers, nbest),
    }
    return Scored(score, files, chosen)


def _write_examples(path: Path, file: Path, answers: Mapping[str, str], nbest: Mapping[str, nulls.Candidates]) -> None:
    """Write the best and the worst answers with what lies around them; contexts are read again, for those alone."""
    measure = measure_of(file, metric_of(file))
    values = {name: measure(name, text) / 100 for name, text in answers.items()}
    chosen = {
        name: next((one for one in nbest[name] if one["text"] == text), {"probability": 0.0})
        for name, text in answers.items()
    }
    best, worst = examples.extremes((name, values[name], chosen[name]["probability"]) for name in answers)
    wanted = {*best, *worst}
    found = {
        one.id: examples.Example(
            text=one.context,
            asked=one.question,
            given=answers[one.id],
            right=" | ".join(dict.fromkeys(answer.text for answer in one.answers)),
            value=values[one.id],
            certainty=chosen[one.id]["probability"],
            marks=(*_given(one, answers[one.id], chosen[one.id]), *_right(one)),
        )
        for one in _with_answers(file)
        if one.id in wanted
    }
    examples.write_examples(path, [found[one] for one in best], [found[one] for one in worst])


def _with_answers(file: Path) -> Iterator[Question]:
    """Yield questions with their answers, or without them where those are not where they are said to be."""
    try:
        yield from list(iter_questions(file, need_answers=True))
    except BigqaError:  # predictions can be scored all the same
        yield from iter_questions(file, need_answers=False)


def _given(question: Question, text: str, candidate: Mapping[str, Any]) -> list[examples.Mark]:
    start = candidate.get("start", question.context.find(text))
    return [(start, start + len(text), examples.GIVEN)] if text and start >= 0 else []


def _right(question: Question) -> list[examples.Mark]:
    places = {(answer.start, answer.start + len(answer.text)) for answer in question.answers}
    return [(begin, end, examples.RIGHT) for begin, end in sorted(places)]


def _short(candidate: Mapping[str, Any]) -> dict[str, Any]:
    rounded = {name: round(candidate[name], 6) for name in ("probability", "score")}
    return {"text": candidate["text"]} | rounded | ({"start": candidate["start"]} if "start" in candidate else {})


def _mean_of(lists: Sequence[nulls.Candidates]) -> list[dict[str, Any]]:
    """Return texts by the mean of their probabilities, 0 where a list lacks one; scores are the logarithms of these."""
    sums: dict[str, float] = {}
    places: dict[str, int] = {}
    for one in (one for candidates in lists for one in candidates):
        sums[one["text"]] = sums.get(one["text"], 0.0) + one["probability"]
        places.setdefault(one["text"], one.get("start", 0))
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return [
        {"text": text, "probability": share, "score": math.log(max(share, LEAST)), "start": places[text]}
        for text, share in ((text, total / len(lists)) for text, total in ordered)
    ]


KIND = Qa()
