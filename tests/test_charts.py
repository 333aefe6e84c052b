"""Charts are the same for the same reports, and show what they say."""

import re
from xml.etree import ElementTree

import pytest
from hand_made import row

from bigqa.table.charts import charts_of, front, speeds_kept
from bigqa.table.grade import grade
from bigqa.table.page import inlined
from bigqa.table.rows import Row


def some() -> list[Row]:
    return [
        row("cpu", said=(6, 20), ran=(6, 16)),
        row("cpu-recompute", said=(2, 10), ran=(2.1, 12)),
        row("cpu-fp32", said=(4, 9), ran=(4, 10)),
        row("cpu-8bit", said=(1.5, 8), ran=(1.5, 8)),
        row("plain", said=(3, 100), ran=(3, 100)),
        row("plain", said=(3, 100), ran="out of memory", micro_batch=2),
    ]


def test_the_same_reports_make_the_same_charts() -> None:
    first, second = (charts_of(some(), grade(some())) for _ in range(2))
    assert first == second
    assert set(first) == {
        "throughput-tiny-bert-processor",
        "throughput-tiny-bert-card-24",
        "memory",
        "caps-processor",
        "caps-card-24",
    }
    for svg in first.values():
        ElementTree.fromstring(svg)
        assert "<dc:date>" not in svg and "Matplotlib" not in svg


def test_each_chart_has_its_points() -> None:
    found = charts_of(some(), grade(some()))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", found["throughput-tiny-bert-processor"])
    assert {"measured peak, GiB", "samples/s", "tiny-bert on Processor", "nothing", "rounding only"} <= set(texts)
    assert "what is learned" not in texts  # no such run
    assert {"cpu, 4 x 64", "cpu-recompute, 4 x 64"} <= set(texts) and "cpu-fp32, 4 x 64" not in texts
    assert "Memory of 5 runs, predicted and measured" in found["memory"]
    assert len(re.findall("<use ", found["memory"])) >= 5


def test_the_front_by_hand() -> None:
    cpu, recompute, fp32, eight, *_ = some()
    assert front([cpu, recompute, fp32, eight]) == [eight, recompute, cpu]
    assert front([]) == []


def test_speed_kept_by_hand() -> None:
    rows = [one for one in some() if not one.on_gpu]
    [found] = grade(rows)
    [curve] = speeds_kept(found, rows).values()
    # Without a cap the best of tier 0 is 16 samples/s; at 4 GiB (3.8 with headroom) and 3, what recomputes keeps 12.
    assert [share for _, share in curve] == pytest.approx([1, 1, 1, 12 / 16, 12 / 16])


def test_nothing_measured_draws_nothing() -> None:
    rows = [row(ran="failed")]
    assert charts_of(rows, grade(rows)) == {}


def test_a_chart_in_a_page_has_the_pages_colours() -> None:
    svg = inlined(charts_of(some(), [])["memory"])
    assert "http" not in svg and "#1b1f24" not in svg and "currentColor" in svg
    assert svg.startswith("<svg viewBox=") or svg.startswith("<svg version=")
