"""What answers come to without a model: each token as often as in training. In: rows. Out: loss and perplexity."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

LmRow = dict[str, list[int]]


def frequency_scores(train: Iterable[LmRow], dev: Iterable[LmRow], vocabulary: int) -> dict[str, Any]:
    """Return the mean loss over `dev`'s answers of tokens drawn as they occur in `train`'s, each counted once more."""
    known, asked = Counter(_answers(train)), Counter(_answers(dev))
    total, tokens = sum(known.values()) + vocabulary, sum(asked.values())
    loss = -sum(count * math.log((known[token] + 1) / total) for token, count in asked.items()) / tokens
    return {"loss": loss, "perplexity": math.exp(loss), "tokens": tokens}


def _answers(rows: Iterable[LmRow]) -> Iterable[int]:
    return (
        token for row in rows for token, is_answer in zip(row["input_ids"], row["answer"], strict=True) if is_answer
    )
