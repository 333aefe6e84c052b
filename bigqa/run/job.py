"""What a run is about: its task, the task's options, and the model's configuration. In: settings. Out: a `Job`."""

import copy
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.models.sources import ModelSource, first_position, load_config, resolve
from bigqa.settings import Settings
from bigqa.tasks.base import TaskKind, Tokens
from bigqa.tasks.documents import names_data
from bigqa.tasks.registry import kind_of

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "embedding_dropout")
DROPOUTS_MORE = ("mlp_dropout", "classifier_dropout", "pooler_dropout", "residual_dropout")


@dataclass(frozen=True)
class Job:
    """One run's task and model."""

    kind: TaskKind[Any]
    options: Any
    """Of the task."""
    source: ModelSource
    facts: dict[str, Any]
    """What the training data told, for the model's configuration."""
    dropout: float | None = None

    def config(self, *, with_dropout: bool = True) -> Any:
        """Return the model's configuration anew, as the run has it. Raises: BigqaError where it cannot be read."""
        config = load_config(self.source, self.kind.head)
        config.update(copy.deepcopy(self.facts))
        if self.dropout is not None and with_dropout:
            for name in (*DROPOUTS, *DROPOUTS_MORE):
                if getattr(config, name, None) is not None:
                    setattr(config, name, self.dropout)
        return config

    def task(self, tokenizer: Any, model: Any) -> Any:
        """Return the task as the trainer sees it."""
        return task_of(self.kind, self.options, tokenizer, model)


def job_of(settings: Settings) -> Job:
    """Return a run's job; its training file is read through once in a process. Raises: BigqaError, UsageError."""
    kind = kind_of(settings.task)
    options = kind.options(settings.model_dump() | settings.task_options)
    file = settings.train_file if names_data(settings.train_file) else None  # a benchmark has none
    facts = _learned(settings.task, options.model_dump_json(), file, settings.limit)
    source = resolve(settings.model, tokenizer=settings.tokenizer)
    return Job(kind, options, source, facts, settings.dropout)


@functools.lru_cache(maxsize=4)
def _learned(name: str, options: str, file: Path | None, limit: int | None) -> dict[str, Any]:
    kind = kind_of(name)
    return kind.learn(file, kind.options(json.loads(options)), limit)


def task_of(kind: TaskKind[Any], options: Any, tokenizer: Any, model: Any) -> Any:
    """Return a task for a model and its tokenizer."""
    tokens = Tokens(tokenizer.pad_token_id or 0, tokenizer.sep_token_id, first_position(model.config))
    return kind.task(model, options, tokens)


def give_padding(config: Any, tokenizer: Any) -> None:
    """Give a model whose vocabulary has nothing to pad with the token that ends texts: padding is masked anyway."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BigqaError(tr("this tokenizer has neither a token for padding nor one that ends texts: name another"))
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
