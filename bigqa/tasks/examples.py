"""The best and the worst of what a model answered, to be looked at. In: answers with what was right. Out: JSON lines.

The worst first: the surest of what is most wrong. The best: the surest of what is right. A text is cut to what lies
around its marks, which are given and right places in it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "examples.jsonl"
"""Of a run's folder."""
COUNT = 20
AROUND = 200
"""Characters of a text on each side of a mark."""
LONGEST = 600
"""Of a text without a mark."""
GIVEN, RIGHT = "given", "right"
Mark = tuple[int, int, str]
"""Where it begins and ends, in characters, and whether that was given or right."""


@dataclass(frozen=True)
class Example:
    """One answer. `value`: how right it is, from 0 to 1; `certainty`: a probability, where there is one."""

    text: str
    asked: str
    given: str
    right: str
    value: float
    certainty: float | None = None
    marks: tuple[Mark, ...] = ()
    figure: str = ""
    """What is said of how right it is, where that is not a share."""


def extremes(ranked: Iterable[tuple[str, float, float]], count: int = COUNT) -> tuple[list[str], list[str]]:
    """Return the names of the best and of the worst of (name, value, certainty); none is in both."""
    known = list(ranked)
    worst = sorted(known, key=lambda one: (one[1], one[2] if one[1] >= 1 else -one[2]))[: min(count, len(known) // 2)]
    left = {one[0] for one in worst}
    best = sorted((one for one in known if one[0] not in left), key=lambda one: (-one[1], -one[2]))[:count]
    return [one[0] for one in best], [one[0] for one in worst]


def write_examples(path: Path, best: Sequence[Example], worst: Sequence[Example]) -> None:
    """Write a line for each example."""
    lines = []
    for kind, members in (("best", best), ("worst", worst)):
        for one in members:
            text, marks = clipped(one.text, one.marks)
            record = {"kind": kind} | asdict(one) | {"text": text, "marks": marks}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def write_ranked(path: Path, all_of_them: Sequence[Example]) -> None:
    """Write the best and the worst of all answers."""
    ranked = ((str(at), one.value, one.certainty or 0.0) for at, one in enumerate(all_of_them))
    best, worst = extremes(ranked)
    write_examples(path, [all_of_them[int(at)] for at in best], [all_of_them[int(at)] for at in worst])


def clipped(text: str, marks: Sequence[Mark], around: int = AROUND) -> tuple[str, list[Mark]]:
    """Return a text cut to what lies around its marks, and the marks in it."""
    if not marks:
        return (text if len(text) <= LONGEST else text[:LONGEST] + " …"), []
    kept: list[list[int]] = []
    for begin, end, _ in sorted(marks):
        low, high = max(0, begin - around), min(len(text), end + around)
        if kept and low <= kept[-1][1]:
            kept[-1][1] = max(kept[-1][1], high)
        else:
            kept.append([low, high])
    pieces: list[str] = []
    shifted: list[Mark] = []
    at = 0
    for low, high in kept:
        gap = "… " if low and not pieces else " … " if low else ""
        at += len(gap)
        shifted += [(b - low + at, e - low + at, kind) for b, e, kind in marks if low <= b and e <= high]
        pieces.append(gap + text[low:high])
        at += high - low
    return "".join(pieces) + (" …" if kept[-1][1] < len(text) else ""), shifted
