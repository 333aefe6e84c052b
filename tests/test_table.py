"""`bigqa table` as a person types it, on reports made by hand."""

import csv
import io
import json
import re
from pathlib import Path
from unittest.mock import patch

import pytest
from browser import BROWSER, shown
from bs4 import BeautifulSoup
from click.testing import Result
from hand_made import report, row, write
from rich.cells import cell_len
from typer.testing import CliRunner

from bigqa.cli import app
from bigqa.errors import BigqaError
from bigqa.language import VARIABLE
from bigqa.show import markers
from bigqa.table.charts import charts_of
from bigqa.table.grade import BARS, grade
from bigqa.table.marks import grade_markdown
from bigqa.table.page import bench_page
from bigqa.table.rows import Row
from bigqa.table.text import COLUMNS, cells, keys, markdown, markdown_table, record

ASK_KOREAN = patch.dict("os.environ", {VARIABLE: "ko"})
PAGE = "\n\n".join(f"# {name}\n\n<!-- {name} -->\n\n<!-- /{name} -->" for name in ("grade", "bench", "charts")) + "\n"


def some() -> list[Row]:
    return [
        row("cpu", said=(2.1, 9), ran=(2, 10)),
        row("cpu-8bit", said=(1, 5), ran="out of memory"),
        row("plain", said=(3, 90), ran=(3.5, 120), cap_bytes=8 * 2**30),
        row("cpu", said=(2.1, 9), ran=(4, 11), heap="kept"),
    ]


def page_of(rows: list[Row]) -> str:
    grades = grade(rows)
    return bench_page(rows, grades, charts_of(rows, grades))


def bigqa(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["table", *map(str, words)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root with reports and an empty page."""
    write(tmp_path / "benchmarks" / "runs" / "cpu", [report("cpu"), report("cpu-8bit", ran="out of memory")])
    (tmp_path / "benchmarks" / "README.md").write_text(PAGE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_rows_texts() -> None:
    texts = dict(zip(COLUMNS, cells(some()[0]), strict=True))
    assert texts["batch"] == "4 x 1" and texts["tier"] == "0" and texts["outcome"] == "ok"
    assert (texts["predicted peak"], texts["peak"]) == ("2.10 GiB", "2.00 GiB")
    assert texts["samples/s (least-most)"] == "10 (7.5-12.5)"
    assert texts["error"] == "-10.0%"  # the last of that name: of the speed
    # 10**12 FLOPs in 0.4 s, of 2 * 10**12 per second.
    assert texts["of rate"] == "125%"
    assert cells(some()[0])[COLUMNS.index("error")] == "+5.0%"
    assert all(len(keys(one)) == len(cells(one)) == len(COLUMNS) for one in some())


def english(text: str) -> set[str]:
    """Return the English words of a text that are neither names of the test's own nor of strategies."""
    names = {"cpu", "bit", "plain", "gib", "card", "processor", "tiny", "bert", "gpu", "bigqa", "bf", "x"}
    known = names | {"as", "the", "test", "wants", "it"}
    return {word.lower() for word in re.findall(r"[A-Za-z]+", text)} - known


def test_tables_marks_and_page_are_in_the_persons_language() -> None:
    rows = some()
    with ASK_KOREAN:
        found = markdown(rows), grade_markdown(grade(rows)), BeautifulSoup(page_of(rows), "lxml")
    for text in found[:2]:
        assert english(text) == set()
        lines = [[line for line in part.splitlines() if line.startswith("|")] for part in text.split("\n\n")]
        assert all(len(set(map(cell_len, table))) <= 1 for table in lines)  # a syllable takes two columns
    soup = found[2]
    assert soup.html is not None and soup.html["lang"] == "ko"
    for gone in soup.select("style, script, figure > svg > metadata"):
        gone.decompose()
    assert english(soup.get_text(" ")) == set()
    assert all(name in grade_markdown(grade(rows)) for name in BARS["cpu"])  # and English where that is spoken


def test_files_that_all_share_are_english_whoever_writes_them(here: Path) -> None:
    with ASK_KOREAN:
        assert bigqa("--update").exit_code == 0 and bigqa("--check").exit_code == 0
        text, table, values = (bigqa(*words).stdout for words in ((), ("--format", "csv"), ("--format", "json")))
        assert bigqa("--charts", "drawn", "--out", "t.csv").exit_code == 0
    assert bigqa("--check").exit_code == 0
    assert "Processor에서:" in text and "실측" in Path("drawn/memory.svg").read_text(encoding="utf-8")
    assert bigqa("--format", "csv").stdout == table and bigqa("--format", "json").stdout == values


def test_rows_without_a_result_keep_their_reason() -> None:
    texts = dict(zip(COLUMNS, cells(some()[1]), strict=True))
    assert texts["outcome"] == "out of memory: as the test wants it"
    assert texts["peak"] == texts["samples/s (least-most)"] == texts["of rate"] == "-"


def test_tables_are_by_model_and_device() -> None:
    text = markdown([*some(), row(model="another/한국어")])
    assert [line for line in text.splitlines() if line.startswith(("###", "On "))] == [
        "### tiny-bert",
        "On 8.00 GiB cap on Card 24:",
        "On Processor:",
        "### 한국어",
        "On Processor:",
    ]
    assert "cpu, kept" in text and max(map(len, text.splitlines())) < 190


def test_a_table_is_padded_and_its_bars_are_escaped() -> None:
    text = markdown_table(("model", "n"), [("a|b", "1"), ("c", "1000")])
    assert text.splitlines() == ["| model |    n |", "| ----- | ---: |", "| a\\|b  |    1 |", "| c     | 1000 |"]


def test_markers() -> None:
    page = markers.replaced(PAGE, "bench", "new")
    assert markers.between(page, "bench") == "new" and markers.between(page, "grade") == ""
    assert markers.replaced(page, "bench", "") == PAGE.replace("<!-- bench -->\n\n<", "<!-- bench -->\n\n\n\n<")
    with pytest.raises(BigqaError, match="<!-- other -->"):
        markers.between(page, "other")


def test_every_format(here: Path) -> None:
    done = bigqa("--format", "csv")
    assert done.exit_code == 0, done.output
    lines = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [line["strategy"] for line in lines] == ["cpu", "cpu-8bit"]
    assert lines[0]["peak_bytes"] == str(2**31) and lines[1]["peak_bytes"] == ""
    found = json.loads(bigqa("--format", "json").stdout)
    first = found["rows"][0]
    # Made by hand then, and made anew by this code: both are there.
    assert first["predicted_then_peak_bytes"] == 2**31 != first["predicted_peak_bytes"]
    assert first["predicted_peak_bytes"] == first["predicted"]["memory"]["host_bytes"]
    assert 0 < first["rate_share"] < 1 and found["grades"][0]["device"] == "Processor"
    done = bigqa("--out", "page.html", "--charts", "drawn")
    assert done.exit_code == 0 and done.stdout == ""
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {path.name for path in Path("drawn").iterdir()} >= {"memory.svg"}
    assert bigqa().stdout.startswith("### tiny-bert")


def test_an_edited_page_is_noticed(here: Path) -> None:
    done = bigqa("--check")
    assert done.exit_code == 1 and "stale: benchmarks/README.md (bench)" in done.stderr
    assert bigqa("--update").exit_code == 0
    assert bigqa("--check").exit_code == 0
    assert "written" not in bigqa("--update").stderr  # nothing is stale
    page = here / "benchmarks" / "README.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("2.00 GiB", "1.99 GiB"), encoding="utf-8")
    done = bigqa("--check")
    assert done.exit_code == 1 and done.stderr.splitlines() == ["stale: benchmarks/README.md (bench)"]
    page.write_text(text + "\nWritten by hand.\n", encoding="utf-8")
    (here / "benchmarks" / "charts" / "memory.svg").write_text("<svg/>", encoding="utf-8")
    done = bigqa("--check")
    assert done.exit_code == 1 and done.stderr.splitlines() == ["stale: benchmarks/charts/memory.svg"]


def test_bars_that_do_not_hold(here: Path) -> None:
    assert bigqa("--grade").exit_code == 0
    done = bigqa("--grade", "--check")
    assert done.exit_code == 1 and "FAIL: Processor: memory, worst error" in done.stderr
    assert "| FAIL" in done.stdout and "at most" in done.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere"], "no folder nowhere"),
        (["empty"], "no reports in empty"),
        (["bad"], "is no report of `bigqa bench`"),
        (["--update", "--check"], "--update writes all"),
        ([], "no folder benchmarks/runs/cpu or benchmarks/runs/gpu here"),
    ],
)
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "one.json").write_text("{}", encoding="utf-8")
    done = bigqa(*words)
    assert isinstance(done.exception, BigqaError) and text in str(done.exception)
    assert "\n" not in str(done.exception)


def test_the_record_has_units_in_its_names() -> None:
    assert all(not name.endswith(("peak", "memory", "speed")) for name in record(some()[0]))


def test_the_page_needs_nothing_beside_it() -> None:
    page = page_of(some())
    assert "http" not in page and "src=" not in page and "@import" not in page
    soup = BeautifulSoup(page, "lxml")
    assert len(soup.select("#runs tbody tr")) == 4 and len(soup.select("#runs th button")) == len(COLUMNS)
    assert page.index("Grade") < page.index("<svg") < page.index('id="runs"')


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("clicks", [1, 2])
def test_the_page_sorts_in_a_browser(tmp_path: Path, clicks: int) -> None:
    column = COLUMNS.index("samples/s (least-most)")
    click = f"document.querySelectorAll('#runs th button')[{column}].click();" * clicks
    soup = BeautifulSoup(shown(tmp_path / "page.html", page_of(some()), click), "lxml")
    found = [str(line.find_all("td")[column]["data-key"]) for line in soup.select("#runs tbody tr")]
    assert found == (["10.0", "11.0", "120.0", "inf"] if clicks == 1 else ["120.0", "11.0", "10.0", "inf"])
    assert soup.select("#runs th")[column]["aria-sort"] == ("ascending" if clicks == 1 else "descending")
