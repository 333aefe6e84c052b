"""Committed run reports, predicted anew: the planner's bars hold, and `benchmarks/` is what the reports give."""

from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import compare, growth, predicting, quality, strategies
from benchmarks.common import REPORTS
from benchmarks.tables import README
from bigqa.show import markers
from bigqa.table.command import DEFAULT_FOLDERS, Tabled, tabled


@pytest.fixture(scope="module")
def found() -> Tabled:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(README.parent.parent)
        if not any(list(folder.glob("*.json")) for folder in DEFAULT_FOLDERS):
            pytest.skip(f"no reports in {DEFAULT_FOLDERS[0]}: `bigqa bench` makes them")
        return tabled([], lambda done, total: None)


def test_every_bar_holds(found: Tabled) -> None:
    assert found.failed == []


def test_nothing_is_stale(found: Tabled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(README.parent.parent)
    # Charts are compared by `bigqa table --check`: another version of matplotlib draws them a little differently.
    assert [name for name in found.stale() if Path(name).suffix not in (".svg", ".html")] == []


@pytest.mark.parametrize("module", [compare, growth, predicting, quality, strategies], ids=lambda one: one.NAME)
def test_a_comparison_is_what_its_reports_give(module: ModuleType) -> None:
    page = README.read_text(encoding="utf-8")
    assert markers.between(page, module.NAME) == module.table(REPORTS / module.NAME).strip("\n")
