"""Charts as shapes. In: lines and points in their own units. Out: places in a drawing, ticks, words for the template.

Drawn small, since a page shows them at their own size: words stay as large on a telephone as on a wide screen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 360.0, 180.0
"""Of the drawing area, in its own units."""
COLOURS = ("var(--one)", "var(--two)", "var(--three)", "var(--four)")
MOST_POINTS = 300
"""Of a line; more are averaged."""
TICKS = 4
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points of one thing, from left to right. `faint`: what lies behind another; `dashed`: what was predicted."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    faint: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """One thing by itself. `strong`: it is the best."""

    at: Point
    words: str
    colour: int = 0
    strong: bool = False


def chart(
    title: str, lines: Sequence[Line] = (), dots: Sequence[Dot] = (), *, across: str, words: Callable[[float], str],
    log_across: bool = False, from_zero: bool = False, marks: Sequence[tuple[float, str]] = (),
    names: Sequence[str] = (),
) -> dict[str, Any] | None:  # fmt: skip
    """Return a chart for the template; none where nothing can be drawn.

    `across`: what lies to the right; `words`: of a height; `marks`: where something happened, and what; `names`: of
    places across that are no numbers, which are counted from 0.
    """
    points = [point for line in lines for point in line.points] + [dot.at for dot in dots]
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return None
    wide = _scale([x for x, _ in points], WIDTH, log=log_across, margin=0.03 if dots else 0.0)
    low_high = [y for _, y in points] + ([0.0] if from_zero else [])
    high = _scale(low_high, HEIGHT, margin=0.06)

    def place(point: Point) -> tuple[float, float]:
        return round(wide.at(point[0]), 1), round(HEIGHT - high.at(point[1]), 1)

    return {
        "title": title,
        "lines": [_drawn(line, place) for line in lines],
        "dots": [
            {
                "at": place(dot.at),
                "words": dot.words,
                "colour": COLOURS[dot.colour % len(COLOURS)],
                "strong": dot.strong,
            }
            for dot in dots
            if all(map(math.isfinite, dot.at))
        ],
        "rows": [(round(HEIGHT - high.at(value), 1), words(value)) for value in high.ticks()],
        "columns": [(wide.at(index), name) for index, name in enumerate(names)]
        or [(round(wide.at(value), 1), _number(value)) for value in wide.ticks()],
        "marks": [(round(wide.at(x), 1), text) for x, text in marks],
        "across": across,
        "legend": [
            {"name": line.name, "colour": _colour(line.colour), "dashed": line.dashed}
            for line in lines
            if line.name and not line.faint
        ],
    }


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high`, put along a length."""

    low: float
    high: float
    length: float
    log: bool

    def at(self, value: float) -> float:
        """Return where a number lies."""
        low, high, value = (_log(one) if self.log else one for one in (self.low, self.high, value))
        return (value - low) / (high - low) * self.length

    def ticks(self) -> list[float]:
        """Return round numbers within."""
        if self.log:
            first, last = math.ceil(_log(self.low) - 1e-9), math.floor(_log(self.high) + 1e-9)
            powers = [10.0**power for power in range(first, last + 1)]
            return powers if len(powers) > 1 else [self.low, self.high]
        raw = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _scale(values: Sequence[float], length: float, *, log: bool = False, margin: float = 0.0) -> Scale:
    low, high = min(values), max(values)
    if low == high:
        around = abs(low) * 0.1 or 1.0
        low, high = (low / 2, high * 2) if log else (low - around, high + around)
    if log:
        factor = (high / low) ** margin
        return Scale(low / factor, high * factor, length, log)
    more = (high - low) * margin
    return Scale(low - (more if low != 0 else 0), high + more, length, log)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _log(value: float) -> float:
    return math.log10(value)


def _drawn(line: Line, place: Callable[[Point], tuple[float, float]]) -> dict[str, Any]:
    points = [point for point in line.points if all(map(math.isfinite, point))]
    text = " ".join(f"{x},{y}" for x, y in map(place, thinned(points)))
    return {
        "name": line.name,
        "points": text,
        "colour": _colour(line.colour),
        "faint": line.faint,
        "dashed": line.dashed,
    }


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most so many points: the means of equal parts."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    parts = [points[begin:end] for begin, end in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def smoothed(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Return means over what lies around each point, a share of all."""
    reach = max(1, round(len(points) * share / 2))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    found = []
    for index, (x, _) in enumerate(points):
        begin, end = max(0, index - reach), min(len(points), index + reach + 1)
        found.append((x, (sums[end] - sums[begin]) / (end - begin)))
    return found


def _number(value: float) -> str:
    if value and (abs(value) < 0.001 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}"
