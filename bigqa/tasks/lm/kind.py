"""The task `lm`: what is read, asked and scored. See `bigqa.tasks.base.TaskKind`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.ranges import Ranged
from bigqa.tasks.base import Ask, Counted, Progress, Row, Scored, TaskKind, Tokens
from bigqa.tasks.caching import INT_LIST, kept_rows
from bigqa.tasks.examples import FILE, RIGHT, Example, write_ranked
from bigqa.tasks.heads import WORDS
from bigqa.tasks.lm.conversations import Told, read_conversations, rows_of
from bigqa.tasks.rows import Rows
from bigqa.tasks.sequences import SHORTER, number_rows
from bigqa.tasks.tables import table_files

FORM = 1
"""Raised whenever the rows change."""
SCHEMA = pa.schema({"input_ids": INT_LIST, "answer": pa.list_(pa.int8())})


class LmOptions(Ranged):
    """What language models read of a run's settings."""

    seq_len: int = 512
    """Longest conversation, in tokens."""
    too_long: Literal["cut", "drop"] = "cut"
    """What becomes of longer ones."""


class Lm(TaskKind[LmOptions]):
    """Conversations, or prompts and completions; answers are learned."""

    name = "lm"
    head = WORDS
    watched = "perplexity"
    score_names = frozenset({"loss", "perplexity"})
    smaller_is_better = frozenset({"perplexity", "loss"})
    pipeline = "text-generation"
    lost_words = (tr("conversations"), tr("cut"))
    columns = ("input_ids", "answer")
    options_type = LmOptions

    def check_tokenizer(self, tokenizer: Any, *, token_types: int, rows: int, name: str) -> list[str | None]:
        """Pairs have no part in it."""
        return []

    def check_text(self, file: Path, tokenizer: Any, options: LmOptions, *, refuse: bool = True) -> str | None:
        """Count what is longer than a window, and what is left out."""
        told = Told()
        for _ in self._rows(file, tokenizer, options, told):
            pass
        if not told.longer and not told.left_out:
            return None
        what = tr("cut at its end") if options.too_long == "cut" else tr("left out")
        return tr(
            "{longer} of {all} conversations are longer than {seq_len} tokens: {what}; {left_out} in all left out",
            longer=told.longer,
            all=told.all,
            seq_len=options.seq_len,
            what=what,
            left_out=told.left_out,
        )

    def check_file(self, file: Path, options: LmOptions, config: Any) -> None:
        """Its form is seen when it is read: a template is the tokenizer's."""

    def features(
        self, file: Path, tokenizer: Any, options: LmOptions, config: Any, *, cache_dir: Path,
        limit: int | None = None, on_progress: Progress | None = None,
    ) -> Rows:  # fmt: skip
        """Return a row for each conversation: tokens, and which of them are answers."""
        template = str(getattr(tokenizer, "chat_template", None))
        follows_from = [FORM, tokenizer.backend_tokenizer.to_str(), template, options.model_dump(), limit]
        return kept_rows(
            cache_dir,
            self.name,
            file,
            table_files(file),
            follows_from,
            SCHEMA,
            lambda: islice(self._rows(file, tokenizer, options, Told()), limit),
        )

    def weights(self, rows: Rows) -> Sequence[int]:
        """Count tokens of answers: a step's loss is the mean over them."""
        return [int(sum(row["answer"])) for row in rows.only(["answer"])]

    def task(self, model: Any, options: LmOptions, tokens: Tokens, config: Any = None) -> Any:
        """Return the loss for a model."""
        from bigqa.tasks.lm.task import LanguageModel

        return LanguageModel(tokens.pad, False, tokens.first_position)

    def full_rows(self, count: int, seq_len: int, vocabulary_size: int) -> Rows:
        """Return rows of random tokens, all of which are learned."""
        columns = number_rows([], count, seq_len, vocabulary_size)
        return Rows.of_columns({"input_ids": columns["input_ids"], "answer": [[0] + [1] * (seq_len - 1)] * count})

    def predict(
        self, file: Path, tokenizer: Any, options: LmOptions, config: Any, ask: Ask, task: Any
    ) -> Iterator[Row]:
        """A language model answers by `bigqa generate`."""
        raise UsageError(tr("a language model answers prompts: bigqa generate MODEL PROMPTS OUTPUT"))

    def score(
        self, file: Path, tokenizer: Any, options: LmOptions, config: Any, ask: Ask, task: Any, *,
        limit: int | None = None,
    ) -> Scored:  # fmt: skip
        """Return the mean loss over the answers' tokens, and the perplexity."""
        found = list(islice(self._rows(file, tokenizer, options, Told()), limit))
        rows = Rows.of_columns({name: [one[name] for one in found] for name in SCHEMA.names})
        losses = [float(loss) for _, loss in ask(task, rows, rows.lengths("input_ids"))]
        total = sum(losses)
        tokens = sum(self.weights(rows))
        loss = total / tokens
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens, "total": len(rows)}
        counts = self.weights(rows)

        def write(path: Path) -> None:
            write_ranked(path, [_example(*row, tokenizer) for row in zip(found, losses, counts, strict=True)])

        return Scored(scores, {FILE: write}, {})

    def plain_scores(self, train: Path, dev: Path, tokenizer: Any, options: LmOptions) -> dict[str, dict[str, Any]]:
        """Score tokens as often as they occur."""
        from bigqa.tasks.lm.plain import frequency_scores

        known, asked = (self._rows(file, tokenizer, options, Told()) for file in (train, dev))
        return {tr("each token as often as in training"): frequency_scores(known, asked, len(tokenizer))}

    def headline(self, scores: Mapping[str, Any]) -> str:
        """Say loss and perplexity."""
        figures = tr(
            "loss {loss:.4f} · perplexity {perplexity:.2f}", loss=scores["loss"], perplexity=scores["perplexity"]
        )
        return tr("{figures} on {count} tokens of answers", figures=figures, count=scores["tokens"])

    def count(self, file: Path, tokenizer: Any, options: LmOptions) -> Counted:
        """Count conversations, and those that shorter windows cut."""
        whole = options.model_copy(update={"seq_len": 2**20})
        sizes = [len(row["input_ids"]) for row in self._rows(file, tokenizer, whole, Told())]
        wanted = sorted({*(one for one in SHORTER if one < options.seq_len), options.seq_len})
        return Counted(len(sizes), {one: sum(size > one for size in sizes) / max(1, len(sizes)) for one in wanted})

    def _rows(self, file: Path, tokenizer: Any, options: LmOptions, told: Told) -> Iterator[dict[str, list[int]]]:
        drop, found = options.too_long == "drop", read_conversations(file, tokenizer)
        return rows_of(found, tokenizer, options.seq_len, drop=drop, told=told)


def _example(row: Mapping[str, Sequence[int]], loss: float, count: int, tokenizer: Any) -> Example:
    """Return a conversation as it is looked at, its answers marked; the likelier they are, the better."""
    text, marks = "", []
    for is_answer, members in groupby(zip(row["answer"], row["input_ids"], strict=True), key=lambda pair: pair[0]):
        piece = tokenizer.decode([token for _, token in members], skip_special_tokens=True)
        if is_answer and piece:
            marks.append((len(text), len(text) + len(piece), RIGHT))
        text += piece if is_answer else piece + "\n"
    each = loss / max(1, count)
    return Example(text, "", "", "", value=math.exp(-each), marks=tuple(marks), figure=f"loss {each:.3f} a token")


KIND = Lm()
