"""The task `score`: what is read, asked and scored. See `bigqa.tasks.base.TaskKind`."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigqa.errors import BigqaError
from bigqa.files import read_text
from bigqa.language import tr
from bigqa.ranges import Ranged
from bigqa.tasks.base import Array, Ask, Counted, Facts, Progress, Row, Scored, TaskKind, Tokens
from bigqa.tasks.caching import INT_LIST, kept_rows
from bigqa.tasks.coverage import check_texts
from bigqa.tasks.examples import FILE as EXAMPLES
from bigqa.tasks.examples import Example, write_ranked
from bigqa.tasks.heads import NUMBER
from bigqa.tasks.labelled import read_examples
from bigqa.tasks.rows import Rows
from bigqa.tasks.sequences import Text, count_cut, encoded, first_texts, number_rows, tokens_of
from bigqa.tasks.streams import as_texts, asked_in_bursts, asked_in_turn, one_line
from bigqa.tasks.tables import column_of, read_table, table_files

FORM = 1
"""Raised whenever the rows change."""
TEXTS = ("text", "text_pair")
SCORE_NAMES = ("score", "similarity", "similarity_score", "label", "labels", "rating", "점수")
FILE = "predictions.jsonl"
"""Of a run's folder: what was wanted and what was given, text by text of its dev file."""
SCHEMA = pa.schema({"input_ids": INT_LIST, "token_type_ids": pa.list_(pa.int8()), "label": pa.float32()})


class ScoreOptions(Ranged):
    """What scoring reads of a run's settings."""

    seq_len: int = 512
    """Longest text or pair, in tokens."""
    text: str | None = None
    """Column; none: one with a usual name. So are the next two."""
    text_pair: str | None = None
    label: str | None = None
    """The column of numbers."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A text or a pair, and its number."""

    text: Text
    number: float


class Score(TaskKind[ScoreOptions]):
    """Pairs of texts, or texts; one number for each."""

    name = "score"
    head = NUMBER
    watched = "spearman"
    score_names = frozenset({"pearson", "spearman", "mse"})
    smaller_is_better = frozenset({"mse"})
    pipeline = "text-classification"
    lost_words = (tr("texts"), tr("cut"))
    reads_lines = True
    columns = ("input_ids", "token_type_ids", "label")
    options_type = ScoreOptions

    def is_of(self, class_name: str, config: Any) -> bool:
        """All that has the head and gives one number."""
        return super().is_of(class_name, config) and config.num_labels == 1

    def learn(self, file: Path | None, options: ScoreOptions, limit: int | None = None) -> Facts:
        """Read the training file through; the model is to have one output."""
        facts: Facts = {"id2label": {0: "SCORE"}, "label2id": {"SCORE": 0}, "problem_type": "regression"}
        if file is not None:
            for one in islice(_measured(file, options), limit):
                facts["text_pairs"] = isinstance(one.text, tuple)
        return facts

    def check_file(self, file: Path, options: ScoreOptions, config: Any) -> None:
        """Read a file through."""
        for _ in _measured(file, options):
            pass

    def check_text(self, file: Path, tokenizer: Any, options: ScoreOptions, *, refuse: bool = True) -> str | None:
        """Look at the first texts."""
        return check_texts(first_texts(one.text for one in _texts(file, options)), file, tokenizer, refuse)

    def features(
        self, file: Path, tokenizer: Any, options: ScoreOptions, config: Any, *, cache_dir: Path,
        limit: int | None = None, on_progress: Progress | None = None,
    ) -> Rows:  # fmt: skip
        """Return a row for each example: tokens, and the number."""
        follows_from = [FORM, tokenizer.backend_tokenizer.to_str(), options.model_dump(), limit]

        def rows() -> Iterator[Row]:
            measured = list(islice(_measured(file, options), limit))
            found = encoded((one.text for one in measured), tokenizer, options.seq_len)
            for done, (one, encoding) in enumerate(zip(measured, found, strict=True), 1):
                if on_progress is not None and done % 1024 == 0:
                    on_progress(done, len(measured))
                yield tokens_of(encoding) | {"label": one.number}

        return kept_rows(cache_dir, self.name, file, table_files(file), follows_from, SCHEMA, rows)

    def task(self, model: Any, options: ScoreOptions, tokens: Tokens, config: Any = None) -> Any:
        """Return the loss for a model."""
        from bigqa.tasks.score.task import Regression

        config = config or model.config
        return Regression(tokens.pad, (getattr(config, "type_vocab_size", 0) or 0) > 1, tokens.first_position)

    def full_rows(self, count: int, seq_len: int, vocabulary_size: int) -> Rows:
        """Return rows of random tokens whose number is zero."""
        return Rows.of_columns(number_rows(["label"], count, seq_len, vocabulary_size))

    def predict(
        self, file: Path, tokenizer: Any, options: ScoreOptions, config: Any, ask: Ask, task: Any
    ) -> Iterator[Row]:
        """Yield the number of each text or pair."""
        texts = (one.text for one in _texts(file, options))
        return map(_answer, asked_in_turn(texts, tokenizer, options.seq_len, ask, task))

    def answers(
        self, lines: Iterator[str], tokenizer: Any, options: ScoreOptions, config: Any, ask: Ask, task: Any
    ) -> Iterator[Row]:
        """As `predict`, of lines as they come."""
        texts = as_texts(lines, pairs=getattr(config, "text_pairs", False))
        return map(_answer, asked_in_bursts(texts, tokenizer, options.seq_len, ask, task))

    def as_line(self, answer: Row) -> str:
        """Return the number and the text."""
        return "\t".join([f"{answer['score']:.4f}", *(one_line(answer[one]) for one in TEXTS if one in answer)])

    def score(
        self, file: Path, tokenizer: Any, options: ScoreOptions, config: Any, ask: Ask, task: Any, *,
        limit: int | None = None,
    ) -> Scored:  # fmt: skip
        """Return Pearson's and Spearman's correlation, times 100, and the mean squared error."""
        measured = list(islice(_measured(file, options), limit))
        texts = (one.text for one in measured)
        found = [float(logits[0]) for _, logits in asked_in_turn(texts, tokenizer, options.seq_len, ask, task)]
        scored = _scored([one.number for one in measured], found)
        looked_at = [_example(*row) for row in zip(measured, found, strict=True)]
        return dataclasses.replace(scored, files={**scored.files, EXAMPLES: lambda path: write_ranked(path, looked_at)})

    def together(self, runs: Sequence[Path], file: Path, options: ScoreOptions, config: Mapping[str, Any]) -> Scored:
        """Give the mean of the runs' numbers."""
        each = [[json.loads(line) for line in read_text(run / FILE, "a run's answers").splitlines()] for run in runs]
        means = [float(np.mean([one["given"] for one in row])) for row in zip(*each, strict=True)]
        return _scored([one["wanted"] for one in each[0]], means)

    def headline(self, scores: Mapping[str, Any]) -> str:
        """Say the correlations."""
        return tr(
            "Pearson {pearson:.2f} · Spearman {spearman:.2f} on {count} texts",
            pearson=scores["pearson"],
            spearman=scores["spearman"],
            count=scores["total"],
        )

    def count(self, file: Path, tokenizer: Any, options: ScoreOptions) -> Counted:
        """Count texts, and those that shorter windows cut."""
        return count_cut((one.text for one in _texts(file, options)), tokenizer, options.seq_len)


def _scored(wanted: Sequence[float], found: Sequence[float]) -> Scored:
    wanted_N, found_N = np.array(wanted), np.array(found)
    scores = {
        "pearson": 100 * pearson(wanted_N, found_N),
        "spearman": 100 * spearman(wanted_N, found_N),
        "mse": float(((wanted_N - found_N) ** 2).mean()),
        "total": len(found),
    }
    lines = [json.dumps({"wanted": one, "given": number}) for one, number in zip(wanted, found, strict=True)]
    text = "\n".join(lines) + "\n"
    return Scored(scores, {FILE: lambda path: _write(path, text)}, {})


def _example(measured: Measured, found: float) -> Example:
    """Return a text with its numbers, as it is looked at; the nearer, the better."""
    text = measured.text if isinstance(measured.text, str) else "\n".join(measured.text)
    off = abs(found - measured.number)
    return Example(text, "", f"{found:.2f}", f"{measured.number:g}", value=1 / (1 + off), figure=f"off by {off:.2f}")


def pearson(one_N: Array, other_N: Array) -> float:
    """Return the linear correlation; zero where one of both is always the same."""
    one, other = one_N - one_N.mean(), other_N - other_N.mean()
    size = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / size if size else 0.0


def spearman(one_N: Array, other_N: Array) -> float:
    """Return the correlation of ranks; equal numbers share the mean of theirs."""
    return pearson(_ranks(one_N), _ranks(other_N))


def _ranks(values_N: Array) -> Array:
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return np.asarray(((ends - counts + 1 + ends) / 2)[inverse])


def _answer(found: tuple[Any, Array]) -> Row:
    text, logits = found
    texts = (text,) if isinstance(text, str) else text
    return {"score": round(float(logits[0]), 6)} | dict(zip(TEXTS, texts, strict=False))


def _texts(file: Path, options: ScoreOptions) -> Iterator[Any]:
    return read_examples(file, text=options.text, pair=options.text_pair, label=None, need_labels=False)


def _measured(file: Path, options: ScoreOptions) -> Iterator[Measured]:
    """Yield texts with their numbers, both read of the same rows."""
    for example, (row, where) in zip(_texts(file, options), read_table(file), strict=True):
        column = column_of(row, options.label, SCORE_NAMES, "label", where)
        yield Measured(example.text, _number(row[column], column, where))


def _number(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BigqaError(
            tr("{where}: the score {column!r} is {value!r}, not a number", where=where, column=column, value=value)
        ) from None
    if not math.isfinite(number) or isinstance(value, bool):
        raise BigqaError(
            tr(
                "{where}: the score {column!r} is {value!r}; it must be a finite number",
                where=where,
                column=column,
                value=value,
            )
        )
    return number


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


KIND = Score()
