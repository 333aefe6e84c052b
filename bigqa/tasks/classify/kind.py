"""The task `classify`: what is read, learned, asked and scored. See `bigqa.tasks.base.TaskKind`."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_text
from bigqa.language import tr
from bigqa.ranges import Ranged
from bigqa.tasks.base import Array, Ask, Counted, Facts, Progress, Row, Scored, TaskKind, Tokens
from bigqa.tasks.caching import INT_LIST, kept_rows
from bigqa.tasks.classify import scoring
from bigqa.tasks.classify.answers import answer, given, probabilities
from bigqa.tasks.coverage import check_texts
from bigqa.tasks.examples import FILE, write_ranked
from bigqa.tasks.examples import Example as Looked
from bigqa.tasks.heads import CLASSES
from bigqa.tasks.labelled import Example, read_examples
from bigqa.tasks.rows import Rows
from bigqa.tasks.sequences import count_cut, encoded, first_texts, number_rows, tokens_of
from bigqa.tasks.streams import as_texts, asked_in_bursts, asked_in_turn, one_line
from bigqa.tasks.tables import table_files

FORM = 1
"""Raised whenever the rows change."""
MOST_LABELS = 1000
SEVERAL = "multi_label_classification"
"""What transformers calls it where a text has several labels at once."""
Columns = dict[str, Any]


class ClassifyOptions(Ranged):
    """What classification reads of a run's settings."""

    seq_len: int = 512
    """Longest text or pair, in tokens."""
    text: str | None = None
    """Column; none: one with a usual name. So are the next two."""
    text_pair: str | None = None
    label: str | None = None
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rare labels count more, by the share of rows that they have."""
    thresholds: Literal["none", "dev"] = "none"
    """dev: from which probability on a label is given, chosen for each on the dev file."""
    chosen_thresholds: dict[str, float] | None = None
    label_smoothing: float = 0.0


class Classify(TaskKind[ClassifyOptions]):
    """Texts or pairs of texts; labels, one or several for each."""

    name = "classify"
    head = CLASSES
    watched = "macro_f1"
    score_names = frozenset({"accuracy", "macro_f1", "micro_f1"})
    pipeline = "text-classification"
    lost_words = (tr("texts"), tr("cut"))
    reads_lines = True
    columns = ("input_ids", "token_type_ids", "label")
    options_type = ClassifyOptions

    def is_of(self, class_name: str, config: Any) -> bool:
        """All that has the head, but what gives one number."""
        return super().is_of(class_name, config) and config.num_labels > 1

    def learn(self, file: Path | None, options: ClassifyOptions, limit: int | None = None) -> Facts:
        """Read the training file through for its labels, and how many rows have each."""
        if file is None:
            return {}
        counts: Counter[str] = Counter()
        several, rows = False, 0
        for example in islice(_examples(file, options), limit):
            rows += 1
            several |= example.several
            counts.update(example.labels)
            if len(counts) > MOST_LABELS:
                raise BigqaError(
                    tr(
                        "{where}: more than {most_labels} labels; is that column the label? (--label)",
                        where=example.where,
                        most_labels=MOST_LABELS,
                    )
                )
        if len(counts) < 2:
            raise BigqaError(
                tr(
                    "data file {file} has one label only, {label!r}: nothing to learn",
                    file=file,
                    label=next(iter(counts), "none"),
                )
            )
        labels = sorted(counts, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
        if options.thresholds == "dev" and not several and len(labels) > 2:
            raise UsageError(
                tr("--thresholds is for yes or no, and for several labels at once; here the likeliest is given")
            )
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {name: number for number, name in enumerate(labels)},
            "problem_type": SEVERAL if several else "single_label_classification",
            "label_counts": [counts[name] for name in labels],
            "label_rows": rows,
            "text_pairs": isinstance(example.text, tuple),
        }

    def check_file(self, file: Path, options: ClassifyOptions, config: Any) -> None:
        """Read a file through. Raises: BigqaError for a label that the training file has not."""
        scoring.check_installed()
        for _ in _known(_examples(file, options), config):
            pass

    def check_text(self, file: Path, tokenizer: Any, options: ClassifyOptions, *, refuse: bool = True) -> str | None:
        """Look at the first texts."""
        texts = (one.text for one in _examples(file, options, need_labels=False))
        return check_texts(first_texts(texts), file, tokenizer, refuse)

    def features(
        self, file: Path, tokenizer: Any, options: ClassifyOptions, config: Any, *, cache_dir: Path,
        limit: int | None = None, on_progress: Progress | None = None,
    ) -> Rows:  # fmt: skip
        """Return a row for each example: tokens, and the label's number, or 0 and 1 for each."""
        several = is_several(config)
        label = pa.list_(pa.int8()) if several else pa.int32()
        schema = pa.schema({"input_ids": INT_LIST, "token_type_ids": pa.list_(pa.int8()), "label": label})
        asked = options.model_dump(include={"seq_len", "text", "text_pair", "label"})
        pairs = [one for one in [file.with_name(f"{file.stem}.{options.text_pair}.txt")] if one.is_file()]
        follows_from = [FORM, tokenizer.backend_tokenizer.to_str(), asked, labels_of(config), several, limit]
        return kept_rows(
            cache_dir,
            self.name,
            file,
            [*table_files(file), *pairs],
            follows_from,
            schema,
            lambda: self._rows(islice(_examples(file, options), limit), tokenizer, options, config, on_progress),
        )

    def task(self, model: Any, options: ClassifyOptions, tokens: Tokens, config: Any = None) -> Any:
        """Return the losses for a model."""
        from bigqa.tasks.classify.task import Classification

        config = config or model.config
        return Classification(
            tokens.pad,
            (getattr(config, "type_vocab_size", 0) or 0) > 1,
            tokens.first_position,
            num_labels=config.num_labels,
            several=is_several(config),
            weights=_weights(config) if options.class_weights == "balanced" else None,
            smoothing=options.label_smoothing,
        )

    def full_rows(self, count: int, seq_len: int, vocabulary_size: int) -> Rows:
        """Return rows of random tokens with the first label."""
        return Rows.of_columns(number_rows(["label"], count, seq_len, vocabulary_size))

    def predict(
        self, file: Path, tokenizer: Any, options: ClassifyOptions, config: Any, ask: Ask, task: Any
    ) -> Iterator[Row]:
        """Yield labels and their probabilities, text by text."""
        texts = (example.text for example in _examples(file, options, need_labels=False))
        yield from _answers(asked_in_turn(texts, tokenizer, options.seq_len, ask, task), options, config)

    def answers(
        self, lines: Iterator[str], tokenizer: Any, options: ClassifyOptions, config: Any, ask: Ask, task: Any
    ) -> Iterator[Row]:
        """As `predict`, of lines as they come."""
        texts = as_texts(lines, pairs=getattr(config, "text_pairs", False))
        yield from _answers(asked_in_bursts(texts, tokenizer, options.seq_len, ask, task), options, config)

    def as_line(self, answer: Row) -> str:
        """Return label, probability and text; of several labels at once, those given with a comma between."""
        label = answer["label"] if "label" in answer else ",".join(answer["labels"])
        shares = answer["probabilities"]
        share = answer.get("probability", max(shares.values()))
        return f"{label}\t{share:.4f}\t{one_line(answer['text'])}"

    def score(
        self, file: Path, tokenizer: Any, options: ClassifyOptions, config: Any, ask: Ask, task: Any, *,
        limit: int | None = None,
    ) -> Scored:  # fmt: skip
        """Score a model by scikit-learn's figures."""
        examples = list(islice(_known(_examples(file, options), config), limit))
        texts = iter([example.text for example in examples])
        found = [logits for _, logits in asked_in_turn(texts, tokenizer, options.seq_len, ask, task)]
        several = is_several(config)
        shares = [probabilities(one, several=several) for one in found]
        scored = scoring.score(
            [example.labels for example in examples],
            shares,
            labels_of(config),
            several=several,
            chosen=options.chosen_thresholds,
            choose=options.thresholds == "dev",
        )
        thresholds = scored.chosen.get("chosen_thresholds", options.chosen_thresholds)
        told = [given(one, labels_of(config), thresholds, several=several) for one in shares]
        looked_at = [_example(*row) for row in zip(examples, told, shares, strict=True)]
        return dataclasses.replace(scored, files={**scored.files, FILE: lambda path: write_ranked(path, looked_at)})

    def together(self, runs: Sequence[Path], file: Path, options: ClassifyOptions, config: Mapping[str, Any]) -> Scored:
        """Give labels by the mean of the runs' probabilities."""
        each = [_written(run / scoring.FILE) for run in runs]
        labels = list(each[0][0]["probabilities"])
        shares = [
            np.mean([[one["probabilities"][name] for name in labels] for one in row], 0)
            for row in zip(*each, strict=True)
        ]
        return scoring.score(
            [tuple(one["wanted"]) for one in each[0]],
            shares,
            labels,
            several=config.get("problem_type") == SEVERAL,
            chosen=options.chosen_thresholds,
            choose=options.thresholds == "dev",
        )

    def plain_scores(self, train: Path, dev: Path, tokenizer: Any, options: ClassifyOptions) -> dict[str, Columns]:
        """Score the most frequent label, and a bag of words."""
        from bigqa.tasks.classify.plain import plain_scores

        facts = self.learn(train, options)
        several, labels = facts["problem_type"] == SEVERAL, list(facts["id2label"].values())
        known, asked = (list(_examples(file, options)) for file in (train, dev))
        return plain_scores(known, asked, labels, several=several)

    def headline(self, scores: Mapping[str, Any]) -> str:
        """Say the means over labels."""
        return tr(
            "accuracy {accuracy:.2f} · macro F1 {macro_f1:.2f} · micro F1 {micro_f1:.2f} on {total} texts",
            **{name: scores[name] for name in ("accuracy", "macro_f1", "micro_f1", "total")},
        )

    def count(self, file: Path, tokenizer: Any, options: ClassifyOptions) -> Counted:
        """Count texts, and those that shorter windows cut."""
        texts = (example.text for example in _examples(file, options, need_labels=False))
        return count_cut(texts, tokenizer, options.seq_len)

    def _rows(
        self, examples: Iterator[Example], tokenizer: Any, options: ClassifyOptions, config: Any,
        on_progress: Progress | None,
    ) -> Iterator[Columns]:  # fmt: skip
        numbers, several = {name: number for number, name in enumerate(labels_of(config))}, is_several(config)
        total = getattr(config, "label_rows", 0)
        kept: list[Example] = []

        def texts() -> Iterator[Any]:
            for example in _known(examples, config):
                kept.append(example)
                yield example.text

        for done, encoding in enumerate(encoded(texts(), tokenizer, options.seq_len), 1):
            example = kept.pop(0)
            if several:
                label: Any = [int(name in example.labels) for name in numbers]
            else:
                label = numbers[example.labels[0]]
            if on_progress is not None and done % 1024 == 0:
                on_progress(done, total)
            yield tokens_of(encoding) | {"label": label}


def _written(file: Path) -> list[Row]:
    return [json.loads(line) for line in read_text(file, "a run's answers").splitlines()]


def _example(example: Example, told: Sequence[str], shares_C: Array) -> Looked:
    """Return a text with its labels, as it is looked at."""
    both, either = set(told) & set(example.labels), set(told) | set(example.labels)
    text = example.text if isinstance(example.text, str) else "\n".join(example.text)
    return Looked(
        text=text,
        asked="",
        given=", ".join(told),
        right=", ".join(example.labels),
        value=len(both) / len(either) if either else 1.0,
        certainty=float(shares_C.max()),
    )


def _answers(found: Iterator[tuple[Any, Any]], options: ClassifyOptions, config: Any) -> Iterator[Row]:
    several, labels = is_several(config), labels_of(config)
    for text, logits_C in found:
        shares = probabilities(logits_C, several=several)
        yield answer(text, shares, labels, options.chosen_thresholds, several=several)


def labels_of(config: Any) -> list[str]:
    """Return a model's labels in the order of its logits."""
    return [config.id2label[number] for number in range(config.num_labels)]


def is_several(config: Any) -> bool:
    """Whether a model gives several labels at once."""
    return bool(config.problem_type == SEVERAL)


def _examples(file: Path, options: ClassifyOptions, *, need_labels: bool = True) -> Iterator[Example]:
    return read_examples(file, text=options.text, pair=options.text_pair, label=options.label, need_labels=need_labels)


def _known(examples: Iterator[Example], config: Any) -> Iterator[Example]:
    """Check labels against those that a model has."""
    known, several = set(labels_of(config)), is_several(config)
    for example in examples:
        for name in example.labels:
            if name not in known:
                raise BigqaError(
                    tr(
                        "{where}: the label {name!r} is none of those trained on: {labels_of}",
                        where=example.where,
                        name=name,
                        labels_of=", ".join(labels_of(config)),
                    )
                )
        if not several and len(example.labels) != 1:
            raise BigqaError(
                tr(
                    "{where}: {count} labels, where each text of the training has one",
                    where=example.where,
                    count=len(example.labels),
                )
            )
        yield example


def _weights(config: Any) -> list[float]:
    """Return what balances labels: the mean over rows is 1; with several at once, the absent over the present."""
    counts, rows = config.label_counts, config.label_rows
    if is_several(config):
        return [(rows - count) / count for count in counts]
    return [rows / (len(counts) * count) for count in counts]


KIND = Classify()
