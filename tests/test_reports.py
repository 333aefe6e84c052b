"""Committed reports, replayed: every measured run is predicted anew, and the errors are held to the bar."""

import statistics
from typing import Any

import pytest

from benchmarks.cpu_memory import REPORTS, compare, summary, table
from benchmarks.tables import README

MEDIAN, WORST, SHORT = 0.05, 0.10, 0.03
"""The bar of CPU training: error of peak resident memory, and how far a prediction may fall short."""


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    found = compare(REPORTS)
    if not found:
        pytest.skip(f"no reports in {REPORTS}: python -m benchmarks.cpu_memory makes them")
    return found


def test_no_case_failed(rows: list[dict[str, Any]]) -> None:
    assert not [row for row in rows if row["error_text"]]


def test_predictions_hold_the_bar(rows: list[dict[str, Any]]) -> None:
    errors = [row["error"] for row in rows]
    print(summary(rows))
    assert statistics.median(map(abs, errors)) <= MEDIAN
    assert max(map(abs, errors)) <= WORST
    assert min(errors) >= -SHORT


def test_the_table_is_that_of_the_reports(rows: list[dict[str, Any]]) -> None:
    assert table(rows) in README.read_text(encoding="utf-8")
