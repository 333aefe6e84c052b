"""What several values of one score say. In: numbers. Out: mean, spread, and the interval that the mean lies in.

Student's t, since runs are few: with five, the interval is 2.8 standard errors to each side and not 2. It tells what
other seeds would do on the same data, and nothing of other data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Of n values. `spread`: the standard deviation over n - 1; `low` and `high`: the interval of the mean."""

    count: int
    mean: float
    spread: float | None
    low: float | None
    high: float | None


def summary(values: Sequence[float]) -> Summary:
    """Return what values say; of one there is no spread. Raises: ValueError where there is none."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Summary(1, mean, None, None, None)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = quantile(0.5 + CONFIDENCE / 2, count - 1) * spread / math.sqrt(count)
    return Summary(count, mean, spread, mean - reach, mean + reach)


def quantile(share: float, freedom: int) -> float:
    """Return the t below which a share from a half to one of Student's distribution lies; by halving."""
    low, high = 0.0, 1.0
    while share_below(high, freedom) < share:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if share_below(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def share_below(t: float, freedom: int) -> float:
    """Return the share of Student's distribution below t >= 0, of whole degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inner = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inner / 2
