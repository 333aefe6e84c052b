"""The page of the benchmark. In: rows, grades, charts. Out: one HTML file that needs nothing beside it."""

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from bigqa.console import page_environment
from bigqa.show.page import TEMPLATES
from bigqa.table.charts import INK, PAPER
from bigqa.table.grade import Grade
from bigqa.table.marks import (
    CAP_COLUMNS,
    CHOICE_COLUMNS,
    FAIL,
    FIGURE_COLUMNS,
    TEXTS,
    cap_cells,
    choice_cells,
    choices_of,
    figure_cells,
    mark,
)
from bigqa.table.rows import Row
from bigqa.table.text import COLUMNS, cells, in_order, keys
from bigqa.table.text import TEXTS as ROW_TEXTS


def bench_page(rows: Sequence[Row], grades: Sequence[Grade], charts: Mapping[str, str]) -> str:
    """Return the page: the grade, the charts (name -> SVG), every run."""
    environment = page_environment(TEMPLATES, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("bench.html.j2").render(
        grades=[_marks(grade) for grade in grades],
        charts={name: inlined(svg) for name, svg in charts.items()},
        columns=COLUMNS,
        texts=ROW_TEXTS | TEXTS,
        rows=[{"cells": cells(row), "keys": keys(row), "ok": row.measured.ok} for row in in_order(rows)],
        fail=FAIL,
    )


def inlined(svg: str) -> str:
    """Return a chart for a page: colours follow the page's, and it is as wide as the page lets it."""
    inner = svg[svg.index("<svg") :]
    inner = re.sub(r' xmlns(:xlink)?="[^"]*"| width="[^"]*pt"| height="[^"]*pt"', "", inner, count=4)
    return Markup(inner.replace(INK, "currentColor").replace(PAPER, "transparent"))


def _marks(grade: Grade) -> dict[str, object]:
    choices = [choice_cells(alike) for alike in choices_of(grade)]
    tables = [
        (FIGURE_COLUMNS, [figure_cells(figure) for figure in grade.figures]),
        (CAP_COLUMNS, [cap_cells(cap) for cap in grade.caps]),
        (CHOICE_COLUMNS, choices),
    ]
    return {
        "name": grade.processor,
        "mark": mark(grade.passes),
        "runs": grade.num_runs,
        "tables": [(columns, lines) for columns, lines in tables if lines],
    }
