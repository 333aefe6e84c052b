"""Labels out of logits. In: the logits of a text. Out: probabilities, and the labels that are given. C: labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigqa.tasks.base import Array

GIVEN_FROM = 0.5
"""A label is given from this probability on, unless another was chosen."""


def probabilities(logits_C: Array, *, several: bool) -> Array:
    """Return the probability of each label, [C]: of all together 1, or of each by itself."""
    logits = logits_C.astype(np.float64)
    if several:
        return np.asarray(1 / (1 + np.exp(-logits)))
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def given(shares_C: Array, labels: Sequence[str], chosen: Mapping[str, float] | None, *, several: bool) -> list[str]:
    """Return the labels given to a text: the likeliest, or all from their thresholds on; the likeliest first."""
    if several:
        over = [index for index, name in enumerate(labels) if shares_C[index] >= (chosen or {}).get(name, GIVEN_FROM)]
        return [labels[index] for index in sorted(over, key=lambda index: -shares_C[index])]
    if chosen and len(labels) == 2:
        yes = labels[1]
        return [yes if shares_C[1] >= chosen.get(yes, GIVEN_FROM) else labels[0]]
    return [labels[int(shares_C.argmax())]]


def answer(
    text: Any, shares_C: Array, labels: Sequence[str], chosen: Mapping[str, float] | None, *, several: bool
) -> dict[str, Any]:
    """Return what is written of a text."""
    names = given(shares_C, labels, chosen, several=several)
    by_name = {name: round(float(share), 6) for name, share in zip(labels, shares_C, strict=True)}
    texts = {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
    told: dict[str, Any] = {"labels": names} if several else {"label": names[0], "probability": by_name[names[0]]}
    return told | {"probabilities": by_name} | texts
