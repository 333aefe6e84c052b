"""What other rooms know of tasks: nothing but these interfaces. One folder in `bigqa/tasks/` per task.

`Task` is what the trainer calls: rows of tokens in, a loss out. `TaskKind` is everything else that is not the same for
every task: data, what a model must have, prediction, scores, words. `bigqa.tasks.registry` finds one by its name.
Commands ask a kind before torch is imported: it imports that where it is asked to make something of it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel

from bigqa.errors import UsageError
from bigqa.files import atomic_path
from bigqa.language import tr
from bigqa.tasks.heads import Head

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from bigqa.tasks.rows import Rows

Row = dict[str, Any]
Batch: TypeAlias = "dict[str, Tensor]"
Array: TypeAlias = "np.ndarray[Any, Any]"
Progress = Callable[[int, int], None]
"""Takes what is done and all there is."""


class Task(Protocol):
    """A task as the trainer sees it. B: windows in a batch. S: tokens of the longest of them."""

    def collate(self, rows: list[Row]) -> Batch:
        """Pad rows of features to the longest of them."""
        ...

    def pack(self, rows: list[Row]) -> Batch:
        """Put rows of features end to end, without padding."""
        ...

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over windows of each window's loss, in fp32.

        Shapes: a scalar. The sum, not the mean: only the trainer knows how many windows one step has.
        """
        ...


class AskedTask(Protocol):
    """The part of a task that inference needs."""

    per_token: bool
    """Whether outputs are of each token, [B, S]: those beyond a window's end are cut off. Else [B, ...]."""

    def collate(self, rows: list[Row]) -> Batch:
        """Pad rows of features."""
        ...

    def pack(self, rows: list[Row]) -> Batch:
        """Put rows of features end to end."""
        ...

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return what a model says of each window: tensors in fp32 whose first axis is B."""
        ...


class TrainedTask(Task, AskedTask, Protocol):
    """What is trained, then asked, and whose memory is predicted."""

    def example(self, micro_batch: int, seq_len: int, *, packed: bool = False) -> Batch:
        """Return a full micro-batch on the current device, for shapes alone."""
        ...


Answered = tuple[Any, ...]
"""The number of a window, and what the model says of it."""
Ask = Callable[[Any, "Rows", Sequence[int]], Iterator[Answered]]
"""Takes a task, rows and the tokens of each; yields what a model says of each row, in order."""
STANDS_FOR: ContextVar[int] = ContextVar("STANDS_FOR", default=1)
"""How often an operation on tensors without data is done: one window, or one piece, stands for all."""


@contextmanager
def standing_for(count: int) -> Iterator[None]:
    """Let what is done in the block stand for so many times; a trace that fails in it leaves nothing behind."""
    token = STANDS_FOR.set(count)
    try:
        yield
    finally:
        STANDS_FOR.reset(token)


Facts = dict[str, Any]
"""What is learned from the training data and kept in the model's configuration: labels, for one."""
Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Counted:
    """What a data file comes to before any training."""

    rows: int
    lost: dict[int, float]
    """Longest window, in tokens -> the share of what is to be learned that none of them holds whole."""


@dataclass(frozen=True)
class Tokens:
    """Token ids and positions that a task must know of a tokenizer and a model."""

    pad: int
    separator: int | None = None
    first_position: int = 0
    """Of a window's first token."""


class TaskKind(ABC, Generic[Options]):
    """One kind of task. Class attributes say what it is, methods what it does; every file error is one line."""

    name: ClassVar[str]
    """Of the command line, and of its folder in `bigqa/tasks/`."""
    head: ClassVar[Head]
    watched: ClassVar[str]
    """The score by which checkpoints are told apart, unless another is asked for."""
    score_names: ClassVar[frozenset[str]] = frozenset()
    """All scores that one may choose by; none: known when something is scored."""
    smaller_is_better: ClassVar[frozenset[str]] = frozenset()
    """Scores of which the least is best."""
    pipeline: ClassVar[str | None] = None
    """What transformers calls the pipeline that its models answer in."""
    lost_words: ClassVar[tuple[str, str]]
    """What shorter windows give up, and what becomes of it: "answers", "out of reach"."""
    answer_words: ClassVar[str] = tr("texts")
    """What it answers, behind their number."""
    reads_lines: ClassVar[bool] = False
    """Whether it answers lines as they come, by lines."""
    columns: ClassVar[tuple[str, ...]]
    """Of its rows, those that batches are made of."""
    options_type: type[Options]
    """What it reads of a run's settings, and a model's folder keeps. Has `seq_len`, in tokens."""

    def is_of(self, class_name: str, config: Any) -> bool:
        """Whether a model of this class of transformers, and this configuration, is of this task."""
        return class_name.endswith(self.head.ending)

    def settled(self, options: Options, files: Sequence[Path]) -> Options:
        """Return options as a model's folder keeps them that was trained and is scored on files."""
        return options

    def options(self, values: Mapping[str, Any]) -> Options:
        """Return its options out of all settings of a run."""
        known = {name: value for name, value in values.items() if name in self.options_type.model_fields}
        return self.options_type.model_validate(known)

    def check(self, options: Options) -> None:
        """Refuse options that do not go together. Raises: UsageError."""

    def check_tokenizer(self, tokenizer: Any, *, token_types: int, rows: int, name: str) -> list[str | None]:
        """Refuse a tokenizer whose template of a pair asks for what a model has not; return lines about the rest."""
        from bigqa.tasks.coverage import check_template, template_doubts

        check_template(tokenizer, token_types=token_types, rows=rows, name=name)
        return [*template_doubts(tokenizer, token_types=token_types, name=name)]

    def check_text(self, file: Path, tokenizer: Any, options: Options, *, refuse: bool = True) -> str | None:
        """Return a line about text that the tokenizer does not know.

        Raises: BigqaError where it knows hardly any, if `refuse`.
        """
        return None

    def watched_on(self, file: Path | None) -> str:
        """Return the score by which checkpoints are told apart on a file, unless another is asked for."""
        return self.watched

    def learn(self, file: Path | None, options: Options, limit: int | None = None) -> Facts:
        """Read the training file through; return what the model's configuration is to hold. Raises: BigqaError.

        Without a file, as where nothing but memory is asked: what is known without data.
        """
        return {}

    @abstractmethod
    def check_file(self, file: Path, options: Options, config: Any) -> None:
        """Read what a run will be scored on: a mistake in it would show after hours. Raises: BigqaError."""

    @abstractmethod
    def features(
        self, file: Path, tokenizer: Any, options: Options, config: Any, *, cache_dir: Path, limit: int | None = None,
        on_progress: Progress | None = None,
    ) -> Rows:  # fmt: skip
        """Return the rows that are trained on, with "input_ids"; from the cache where they were made before."""

    def weights(self, rows: Rows) -> Sequence[int] | None:
        """Return what each row counts in the mean loss of a step; none: all alike."""
        return None

    @abstractmethod
    def task(self, model: Any, options: Options, tokens: Tokens, config: Any = None) -> Any:
        """Return the `TrainedTask` for a model, or for its class and configuration where only memory is asked."""

    @abstractmethod
    def full_rows(self, count: int, seq_len: int, vocabulary_size: int) -> Rows:
        """Return rows of random tokens, all of one length: what a benchmark trains on."""

    @abstractmethod
    def predict(self, file: Path, tokenizer: Any, options: Options, config: Any, ask: Ask, task: Any) -> Iterator[Row]:
        """Yield what a model answers to each entry of a file, in order, reading no further than it must."""

    def answers(
        self, lines: Iterator[str], tokenizer: Any, options: Options, config: Any, ask: Ask, task: Any
    ) -> Iterator[Row]:
        """As `predict`, of lines as they come. Raises: UsageError where a line is no entry."""
        raise NotImplementedError

    def as_line(self, answer: Row) -> str:
        """Return an answer as a line of standard output: columns between tabs, the text itself last."""
        raise NotImplementedError

    def write(self, answers: Iterator[Row], output: Path, more: Mapping[str, Path]) -> int:
        """Write answers as JSON lines, as they come; return how many. `more`: further files that were asked for."""
        if more:
            raise UsageError(tr("--{option} is nothing to --task {task}", option=min(more), task=self.name))
        count = 0
        with atomic_path(output) as temporary, temporary.open("w", encoding="utf-8") as file:
            for one in answers:
                file.write(json.dumps(one, ensure_ascii=False) + "\n")
                count += 1
        return count

    @abstractmethod
    def score(
        self, file: Path, tokenizer: Any, options: Options, config: Any, ask: Ask, task: Any, *,
        limit: int | None = None,
    ) -> Scored:  # fmt: skip
        """Score a model on a file; `limit`: on its first entries, so many."""

    def together(self, runs: Sequence[Path], file: Path, options: Options, config: Mapping[str, Any]) -> Scored | None:
        """Score what several runs say together, by what each has written of the same file; none where they cannot.

        `runs`: their folders; `config`: of one of their models, as its file has it.
        """
        return None

    def plain_scores(self, train: Path, dev: Path, tokenizer: Any, options: Options) -> dict[str, dict[str, Any]]:
        """Return what needs no model -> its scores on `dev`: what a model's scores are to be held against."""
        return {}

    @abstractmethod
    def headline(self, scores: Mapping[str, Any]) -> str:
        """Say scores in a line."""

    @abstractmethod
    def count(self, file: Path, tokenizer: Any, options: Options) -> Counted:
        """Count a file's rows, and what windows lose that are shorter than asked for."""


@dataclass(frozen=True)
class Scored:
    """How good a model is on a file."""

    scores: dict[str, Any]
    files: Mapping[str, Callable[[Path], None]]
    """Name in the run's folder -> what writes it: predictions, a picture."""
    chosen: Mapping[str, Any]
    """Options that were chosen on this file, for the model's folder: thresholds, for one."""


def refuse_unknown(names: Sequence[str], kind: TaskKind[Any]) -> None:
    """Refuse options that a task does not have. Raises: UsageError."""
    unknown = [name for name in names if name not in kind.options_type.model_fields]
    if unknown:
        raise UsageError(
            tr("--{unknown} is nothing to --task {kind}", unknown=unknown[0].replace("_", "-"), kind=kind.name)
        )


def check_metric(metric: str | None, kind: TaskKind[Any]) -> None:
    """Refuse a score that a task does not have, before anything is trained. Raises: UsageError."""
    if metric is not None and kind.score_names and metric not in kind.score_names:
        raise UsageError(
            tr(
                "--metric {metric} is none of this task's scores: {known}",
                metric=metric,
                known=", ".join(sorted(kind.score_names)),
            )
        )
