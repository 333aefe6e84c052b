"""Committed measurements hold today's predictor to its bar, on any machine."""

import statistics

from benchmarks.cpu_memory import README, REPORTS, cases, compare, table


def test_cpu_training_is_predicted_within_the_bar() -> None:
    rows = compare(REPORTS)
    assert len(rows) >= len(cases()) * 0.9
    errors = [row["error"] for row in rows if "error" in row]
    assert not [row["name"] for row in rows if row["error_text"]]
    assert statistics.median(map(abs, errors)) <= 0.05
    assert max(map(abs, errors)) <= 0.10
    assert min(errors) >= -0.03
    assert table(rows) in README.read_text(encoding="utf-8"), "python -m benchmarks.cpu_memory --table"
