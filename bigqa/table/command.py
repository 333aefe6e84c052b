"""`bigqa table`: from folders of run reports to texts and files. In: what is asked. Out: text, or files written.

`--update` writes all that this module makes in benchmarks/; `--check` compares that with what is there. Both are in
English, since that folder is everybody's; what is shown, or written by `--out`, is in the language of this process.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from bigqa.bench.report import read_reports
from bigqa.errors import BigqaError
from bigqa.files import read_text, write_text
from bigqa.language import in_english, put, shown, spoken, tr
from bigqa.show import markers
from bigqa.table.charts import charts_of
from bigqa.table.grade import Grade, grade
from bigqa.table.marks import grade_markdown, grade_record
from bigqa.table.null_gpu import FOLDER, errors_of, null_markdown, read_counted, sample_of
from bigqa.table.page import bench_page
from bigqa.table.rows import Row, rows_of
from bigqa.table.text import csv_text, in_order, markdown, record
from bigqa.table.torture import read_faults, torture_markdown

Format = Literal["md", "csv", "json", "html"]
BENCHMARKS = Path("benchmarks")
DEFAULT_FOLDERS = (BENCHMARKS / "runs" / "cpu", BENCHMARKS / "runs" / "gpu")
README, PAGE, CHARTS = BENCHMARKS / "README.md", BENCHMARKS / "bench.html", BENCHMARKS / "charts"


class Tabled:
    """The rows of some folders, and their grades."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.grades: list[Grade] = grade(self.rows)
        self._drawn: dict[str, dict[str, str]] = {}

    @property
    def drawn(self) -> dict[str, str]:
        """Every chart, by its name, in the language of this process."""
        if spoken() not in self._drawn:
            self._drawn[spoken()] = charts_of(self.rows, self.grades)
        return self._drawn[spoken()]

    def text(self, form: Format, *, graded: bool) -> str:
        """Return the table, or the grade alone, in a format; a page has both."""
        if form == "html":
            return bench_page(self.rows, self.grades, self.drawn)
        if form == "json":
            return self._json()
        if form == "csv":
            return csv_text(self.rows)
        return grade_markdown(self.grades) if graded else markdown(self.rows)

    def charts(self, folder: Path) -> dict[Path, str]:
        """Return the charts by their files in a folder."""
        return {folder / f"{name}.svg": svg for name, svg in self.drawn.items()}

    def sections(self) -> dict[str, str]:
        """Return what belongs between the markers of the benchmarks' page, by their names."""
        pictures = [f"![{path.stem}]({path.relative_to(BENCHMARKS).as_posix()})" for path in self.charts(CHARTS)]
        faults = read_faults()
        return {
            "grade": grade_markdown(self.grades),
            "bench": markdown(self.rows),
            "charts": "\n".join(pictures),
        } | ({"torture": torture_markdown(faults)} if faults else {})

    def files(self) -> dict[Path, str]:
        """Return the files of `benchmarks/` that these rows make whole."""
        return {PAGE: bench_page(self.rows, self.grades, self.drawn), **self.charts(CHARTS)}

    def stale(self) -> list[str]:
        """Name what in `benchmarks/` is not what these rows give."""
        page = _readme()
        with in_english():
            sections, files = self.sections(), self.files()
        found = [
            f"{README} ({name})" for name, text in sections.items() if markers.between(page, name) != text.strip("\n")
        ]
        return found + [str(path) for path, text in files.items() if not _holds(path, text)]

    def update(self) -> list[Path]:
        """Write what is stale in `benchmarks/`; return the files."""
        page = _readme()
        with in_english():
            sections, files = self.sections(), self.files()
        for name, text in sections.items():
            page = markers.replaced(page, name, text)
        return write_all({path: text for path, text in ({README: page} | files).items() if not _holds(path, text)})

    @property
    def failed(self) -> list[str]:
        """Name the bars that do not hold."""
        return [
            put("{device}: {figure}", device=one.processor, figure=name) for one in self.grades for name in one.failed
        ]

    def _json(self) -> str:
        rows = [
            record(row) | {"predicted": row.predicted.model_dump(mode="json"), "report": _plain(row)}
            for row in in_order(self.rows)
        ]
        grades = [grade_record(one) for one in self.grades]
        return json.dumps({"rows": rows, "grades": grades}, ensure_ascii=False, indent=2)


def tabled(folders: Sequence[Path], on_row: Callable[[int, int], None]) -> Tabled:
    """Read the reports of folders, or of the default ones, and predict them anew. Raises: BigqaError for none."""
    chosen = list(folders) or [folder for folder in DEFAULT_FOLDERS if folder.is_dir()]
    if not chosen:
        names = tr("{first} or {second}", first=DEFAULT_FOLDERS[0], second=DEFAULT_FOLDERS[1])
        raise BigqaError(
            tr("no folder {names} here: name a folder of reports; `bigqa bench --out DIR` makes them", names=names)
        )
    reports = read_reports(chosen)
    if not reports:
        asked = ", ".join(map(str, chosen))
        raise BigqaError(
            tr("no reports in {names}: `bigqa bench --out {chosen}` makes them", names=asked, chosen=chosen[0])
        )
    return Tabled(rows_of(reports, on_row))


def null_gpu_part() -> str:
    """Return the grade of a sample of the cells of the null GPU; nothing where there are none."""
    cells = read_counted(FOLDER)
    return f"\n\n{null_markdown(cells, errors_of(sample_of(cells)))}" if cells else ""


def torture_part() -> str:
    """Return what came of runs that were broken; nothing where there are none."""
    faults, title = read_faults(), shown(tr("Runs that were broken"))
    return f"\n\n### {title}\n\n{torture_markdown(faults)}" if faults else ""


def form_of(asked: Format | None, out: Path | None) -> Format:
    """Return the format that was asked for, or that a file's name ends in, or Markdown."""
    ends: dict[str, Format] = {".csv": "csv", ".json": "json", ".html": "html"}
    return asked or ends.get(out.suffix if out else "", "md")


def write_all(files: dict[Path, str]) -> list[Path]:
    """Write files; return their paths."""
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def _readme() -> str:
    return read_text(README, tr("the benchmarks' page"))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _plain(row: Row) -> dict[str, object]:
    return row.report.model_dump(mode="json", exclude={"config"})
