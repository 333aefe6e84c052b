"""How good labels are, by scikit-learn's figures. In: labels wanted, probabilities. Out: scores, a picture, thresholds.

scikit-learn is imported when something is scored: transformers imports it where it is installed, and waits for it.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.tasks.base import Array, Scored
from bigqa.tasks.classify.answers import GIVEN_FROM, given

FILE = "predictions.jsonl"
"""Of a run's folder: what was wanted, what was given and the probabilities, text by text of its dev file."""
NEEDS = tr("scores of classification need scikit-learn: pip install 'bigqa[scores]', or train without --dev-file")


def check_installed() -> None:
    """Refuse to score without scikit-learn, before hours of training. Raises: BigqaError."""
    if importlib.util.find_spec("sklearn") is None:
        raise BigqaError(NEEDS)


def score(
    wanted: Sequence[tuple[str, ...]], shares: Sequence[Array], labels: Sequence[str], *, several: bool,
    chosen: dict[str, float] | None, choose: bool,
) -> Scored:  # fmt: skip
    """Score labels of texts; `choose`: the thresholds too, on these very texts."""
    check_installed()
    truth_NC = np.array([[name in one for name in labels] for one in wanted], dtype=int)
    shares_NC = np.stack(shares)
    if choose:
        names = labels if several else labels[1:]
        chosen = {
            name: best_threshold(truth_NC[:, at], shares_NC[:, at]) for at, name in enumerate(labels) if name in names
        }
    told = [given(one, labels, chosen, several=several) for one in shares]
    found = _figures(truth_NC, told, labels, several=several)
    if choose:
        found["thresholds"] = chosen
    lines = [
        json.dumps({"wanted": list(one), "given": names, "probabilities": _rounded(share, labels)}, ensure_ascii=False)
        for one, names, share in zip(wanted, told, shares_NC, strict=True)
    ]
    files = {FILE: lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8")}
    if not several:
        files["confusion.png"] = lambda path: draw_confusion(found["confusion"], labels, path)
    return Scored(found, files, {"chosen_thresholds": chosen} if choose else {})  # type: ignore[arg-type]


def best_threshold(truth_N: Array, shares_N: Array) -> float:
    """Return the threshold of the best F1, midway between two probabilities; of equals, the nearest to a half."""
    order = np.argsort(-shares_N, kind="stable")
    hits = truth_N[order].cumsum()
    given_count = np.arange(1, len(order) + 1)
    f1 = 2 * hits / (given_count + truth_N.sum())
    sorted_shares = shares_N[order]
    below = np.append(sorted_shares[1:], 0.0)
    ends = np.append(sorted_shares[1:] < sorted_shares[:-1], True)  # equal probabilities are given together
    middles, scores = ((sorted_shares + below) / 2)[ends], f1[ends]
    best = scores >= scores.max() - 1e-12
    return float(min(middles[best], key=lambda one: abs(one - GIVEN_FROM)))


def _figures(truth_NC: Array, told: Sequence[list[str]], labels: Sequence[str], *, several: bool) -> dict[str, Any]:
    from sklearn import metrics

    told_NC = np.array([[name in names for name in labels] for names in told], dtype=int)
    wanted, got = (truth_NC, told_NC) if several else (truth_NC.argmax(1), told_NC.argmax(1))
    numbers = list(range(len(labels)))
    each = metrics.precision_recall_fscore_support(wanted, got, labels=numbers, average=None, zero_division=0)
    average = {
        f"{kind}_f1": 100 * metrics.f1_score(wanted, got, labels=numbers, average=kind, zero_division=0)
        for kind in ("macro", "micro")
    }
    per_class = {
        name: {"precision": 100 * p, "recall": 100 * r, "f1": 100 * f, "support": int(count)}
        for name, p, r, f, count in zip(labels, *(one.tolist() for one in each), strict=True)
    }
    found = {
        "accuracy": 100 * metrics.accuracy_score(wanted, got),
        **average,
        "total": len(told),
        "per_class": per_class,
    }
    if not several:
        found["confusion"] = metrics.confusion_matrix(wanted, got, labels=numbers).tolist()
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in found.items()}


def _rounded(shares_C: Array, labels: Sequence[str]) -> dict[str, float]:
    return {name: round(float(share), 6) for name, share in zip(labels, shares_C, strict=True)}


def draw_confusion(counts: list[list[int]], labels: Sequence[str], path: Path) -> None:
    """Draw how often each label was taken for another: a row is what was wanted, a column what was given."""
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    hangul = [one.name for one in font_manager.fontManager.ttflist if "CJK" in one.name or "Nanum" in one.name]
    names = labels if hangul or all(name.isascii() for name in labels) else [str(n) for n in range(len(labels))]
    values = np.array(counts)
    size = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values / np.maximum(1, values.sum(1, keepdims=True)), cmap="Blues", vmin=0, vmax=1)
    ticks = list(range(len(labels)))
    family: dict[str, Any] = {"family": hangul[:1] or ["sans-serif"]}
    axes.set_xticks(ticks, names, rotation=45, ha="right", **family)
    axes.set_yticks(ticks, names, **family)
    axes.set_xlabel("given")
    axes.set_ylabel("wanted")
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            dark = count > sum(line) / 2
            axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    figure.savefig(path, format="png", dpi=120)
