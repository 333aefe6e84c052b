"""Data and scores as tables. In: what was counted, or scored. Out: rich tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bigqa.language import tr


def inspection_table(found: Mapping[str, Any]) -> Table:
    """Show what `bigqa data inspect` found, one figure a row; nested figures are indented by their names."""
    table = Table(tr("figure"), tr("value"), title=tr("data"))
    for name, value in _flat(found):
        table.add_row(name, _text(value))
    return table


def scores_table(title: str, rows: Mapping[str, Mapping[str, Any]], overlap: str = "F1") -> Table:
    """Show exact match, the measure beside it, and the number of questions, one row for each score."""
    table = Table(tr("metric"), "EM", overlap, tr("questions"), tr("missing"), title=title)
    for name, score in rows.items():
        figures = [f"{score[key]:.2f}" for key in ("exact_match", overlap.lower().replace("-", "_"))]
        table.add_row(name, *figures, str(score["total"]), str(score["missing"]))
    return table


def figures_table(title: str, rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Show some figures of several scores, one row for each; what a score does not have is empty."""
    table = Table("", *(name.replace("_", " ") for name in names), title=title)
    for label, score in rows.items():
        table.add_row(label, *(_text(score[name]) if name in score else "" for name in names))
    return table


def _flat(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in found.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{label} ")
        else:
            rows.append((label, value))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
