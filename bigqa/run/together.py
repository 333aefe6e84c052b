"""Whether a tokenizer and a model belong together. In: both. Out: refusals, before data and weights are read; or lines
about what looks as if it were another's.
"""

from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.models.sources import ModelSource, first_position, load_tokenizer
from bigqa.models.tokenizers import check_rows, disagreement, doubts, rows_needed
from bigqa.tasks.base import TaskKind
from bigqa.tasks.registry import DEFAULT, kind_of


def check_together(source: ModelSource, tokenizer: Any, config: Any, kind: TaskKind[Any] | None = None) -> list[str]:
    """Refuse a tokenizer that gives what a model has no rows for; return what may be amiss. Raises: BigqaError."""
    rows = getattr(config, "vocab_size", None) or rows_needed(tokenizer)
    rows = rows if source.has_weights else max(rows, rows_needed(tokenizer))
    types = getattr(config, "type_vocab_size", 0) or 0
    check_rows(tokenizer, rows, source.called)
    kind = kind or kind_of(DEFAULT)
    lines = kind.check_tokenizer(tokenizer, token_types=types, rows=rows, name=source.called)
    _check_padding(source, tokenizer, config)
    if source.tokenizer is not None:
        lines.append(disagreement(tokenizer, source.tokenizer))
    if source.has_weights:
        lines += [*doubts(tokenizer, rows), _other_than_its_own(source, tokenizer)]
    return [line for line in lines if line is not None]


def _check_padding(source: ModelSource, tokenizer: Any, config: Any) -> None:
    """Refuse another padding than the one that positions are counted from: each such token would stand still."""
    counts_from_it = first_position(config) > 0
    if counts_from_it and source.has_weights and tokenizer.pad_token_id != config.pad_token_id:
        raise BigqaError(
            tr(
                "the tokenizer pads with id {pad_token_id}, and {called} counts positions from its padding, id "
                "{pad_token_id_2}: use the model's own tokenizer",
                pad_token_id=tokenizer.pad_token_id,
                called=source.called,
                pad_token_id_2=config.pad_token_id,
            )
        )


def _other_than_its_own(source: ModelSource, tokenizer: Any) -> str | None:
    """Say where --tokenizer gives other ids than the vocabulary that lies with the weights."""
    if source.tokenizer in (None, source.name) or not Path(source.name).is_dir():
        return None
    try:
        own = load_tokenizer(source.model_copy(update={"tokenizer": source.name})).get_vocab()
    except BigqaError:
        return None
    other = sum(own.get(token) != number for token, number in tokenizer.get_vocab().items())
    if not other:
        return None
    return tr(
        "{other} entries of --tokenizer {tokenizer} have other ids than in {source}'s own vocabulary",
        other=other,
        tokenizer=source.tokenizer,
        source=source.name,
    )
