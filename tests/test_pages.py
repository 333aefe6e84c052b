"""Pages of runs: what is on them, of runs whole or not; charts as shapes; texts cut to their marks."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from browser import BROWSER, shown
from bs4 import BeautifulSoup
from commands import here

from bigqa.errors import BigqaError
from bigqa.language import VARIABLE
from bigqa.pages.charts import Dot, Line, Scale, chart, smoothed, thinned
from bigqa.pages.run import read_run
from bigqa.pages.run_page import run_page, write_page
from bigqa.runs.page import rewritten
from bigqa.tasks.examples import GIVEN, RIGHT, Example, clipped, extremes, write_examples

CONFIG = {"model": "tiny", "task": "qa", "train_file": "train.json", "dev_file": "dev.json", "seq_len": 100, "keep": 2,
          "predicted_samples_per_s": 10.0}  # fmt: skip
TEXT = "서울은 <b>대한민국</b>의 수도이다."


def step(number: int) -> dict[str, Any]:
    return {"step": number, "loss": 4 / number, "lr": 1e-4, "tokens_per_s": 500.0, "samples_per_s": 5.0, "seconds": 2.0,
            "memory_bytes": 2**29, "peak_memory_bytes": 2**30}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was ended after 6 of 10 steps, on a GPU."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    plan = {"device": "cuda", "steps": 10, "steps_per_epoch": 5, "predicted": {"allocated_bytes": 5 * 2**28}}
    (folder / "plan.json").write_text(json.dumps(plan | {"strategy": {"precision": "bf16", "recompute": "none"}}))
    lines = [json.dumps(step(number)) + "\n" for number in range(1, 7)]
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 7, "lo')
    switch = {"time": "t", "after_step": 3, "to": "recompute", "where": "device", "reason": "2 GiB <too> much"}
    (folder / "switches.jsonl").write_text(json.dumps(switch) + "\n")
    return folder


def finished(folder: Path) -> None:
    scores = {"exact_match": 50.0, "f1": 62.5, "total": 2}
    (folder / "report.json").write_text(json.dumps({"scores": scores, "windows": 40, "steps": 6, "best": {"step": 5}}))
    (folder / "evaluations.jsonl").write_text('{"step": 5, "f1": 60.0}\n')
    good = Example(TEXT, "수도는?", "서울", "서울", 1.0, 0.9, ((0, 2, GIVEN), (0, 2, RIGHT)))
    bad = Example(TEXT, "나라는?", "수도", "대한민국", 0.0, 0.8, ((15, 17, GIVEN), (7, 11, RIGHT)))
    write_examples(folder / "examples.jsonl", [good], [bad])


class Text(HTMLParser):
    """The words of a page, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.fetched, self.marks = "", [], []  # type: ignore[var-annotated]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value for name, value in attrs if name in ("src", "href")]
        self.marks += [dict(attrs).get("class")] if tag == "mark" else []

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_run_that_was_ended_has_its_curves_and_what_is_left(run: Path) -> None:
    page = Text(run_page(read_run(run)))
    assert "at step 6 of 10: it goes on, or was ended" in page.words
    assert "4 steps are left: about 8 s at 2.00 s a step" in page.words and f"bigqa train --resume {run}" in page.words
    assert "One more epoch is 5 steps: about 10 s" in page.words
    assert "1.25 GiB predicted (+25.0%)" in page.words and "1,000 tokens/s predicted (+100.0%)" in page.words
    assert "2 GiB <too> much" in page.words and "after step 3" in page.words


def test_the_page_of_a_whole_run_shows_answers_in_their_text(run: Path) -> None:
    finished(run)
    assert write_page(run) == run / "report.html"
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Text(text)
    assert "62.50" in page.words and "done, ended after step 6 of 10" in page.words
    assert TEXT in page.words and "<b>대한민국" not in text
    # The legend's three first: of the best answer one mark, of the worst two.
    assert page.marks == ["given", "right", "both", "both", "right", "given"]
    assert "0% right · 80% sure" in page.words and page.fetched == [] and "url(" not in text and "@import" not in text


def test_every_chart_lies_within_its_drawing(run: Path) -> None:
    finished(run)
    page = run_page(read_run(run))
    found = [
        tuple(map(float, pair.split(","))) for text in re.findall(r'points="([^"]*)"', page) for pair in text.split()
    ]
    assert len(found) > 20 and all(-0.1 <= x <= 360.1 and -0.1 <= y <= 180.1 for x, y in found)
    assert page.count("<figure>") == 5


def test_what_is_no_run_is_named_and_what_is_no_record_is_passed_over(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BigqaError, match="is not a bigqa run folder"):
        read_run(tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(['{"step": 1', '{"step": 2}', "[]", *lines, '{"step"']))
    assert len(read_run(run).steps) == len(lines) - 1  # the last of them was half-written
    done = here("page", tmp_path / "none")
    assert done.returncode == 1 and "is not a bigqa run folder" in done.stderr


def test_lines_are_put_where_they_belong() -> None:
    found = chart("t", [Line("a", [(0, 0), (10, 5)])], across="x", words=str, from_zero=True)
    assert found is not None
    (x0, y0), (x1, y1) = (map(float, pair.split(",")) for pair in found["lines"][0]["points"].split())
    assert (x0, y0, x1) == (0, 180, 360) and 5 < y1 < 15
    assert [text for _, text in found["rows"]] == ["0.0", "2.0", "4.0"]
    assert chart("t", [Line("a", [])], across="x", words=str) is None


def test_a_chart_of_one_point_or_of_what_is_no_number_is_drawn() -> None:
    nan = float("nan")
    found = chart("t", [Line("a", [(1, 2)])], [Dot((nan, 1.0), "n"), Dot((1, 2), "d")], across="x", words=str)
    assert found is not None and len(found["dots"]) == 1


def test_a_logarithmic_scale_has_powers_of_ten() -> None:
    scale = Scale(1e-5, 1e-2, 300.0, log=True)
    assert scale.at(1e-4) == pytest.approx(100) and scale.ticks() == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])


def test_many_points_become_means_of_equal_parts() -> None:
    points = [(float(at), float(at % 2)) for at in range(1000)]
    found = thinned(points, 100)
    assert len(found) == 100 and all(y == pytest.approx(0.5) for _, y in found)
    assert smoothed([(0, 1.0), (1, 2.0), (2, 6.0)])[1] == (1, 3.0)


def test_the_surest_of_what_is_wrong_is_the_worst() -> None:
    ranked = [("a", 1.0, 0.9), ("b", 0.0, 0.2), ("c", 0.0, 0.8), ("d", 1.0, 0.5), ("e", 0.5, 0.9), ("f", 1.0, 0.99)]
    best, worst = extremes(ranked, 2)
    assert best == ["f", "a"] and worst == ["c", "b"]
    assert extremes([("a", 1.0, 0.9)], 2) == (["a"], [])


def test_a_text_is_cut_to_what_lies_around_its_marks() -> None:
    text = "0123456789" * 10
    cut, marks = clipped(text, [(50, 53, GIVEN), (90, 91, RIGHT)], around=4)
    assert cut == "… 67890123456 … 678901234 …"[: len(cut)] and [cut[b:e] for b, e, _ in marks] == ["012", "0"]
    assert clipped("short", []) == ("short", []) and len(clipped("x" * 5000, [])[0]) < 700
    assert clipped(text, [(0, 100, GIVEN)], around=4)[0] == text


def several(place: Path) -> tuple[Path, Path]:
    """Return the folders of two seeds, and of a search of two trials."""
    figures = {"mse": {"count": 2, "mean": 1.5, "spread": 0.7, "low": -4.9, "high": 7.9}}
    row = {"scores": {"mse": 1.0}, "seconds": 3.0}
    seeds = {"metric": "mse", "runs": {"1": row, "2": row | {"scores": {"mse": 2.0}}}, "scores": figures,
             "best": "seed-1", "ensemble": {"mse": 0.5}, "failed": {"3": "no <memory>"}}  # fmt: skip
    folder = place / "seeds"
    for number in (1, 2):
        (folder / f"seed-{number}").mkdir(parents=True)
        (folder / f"seed-{number}" / "config.json").write_text(json.dumps(CONFIG))
    (folder / "summary.json").write_text(json.dumps(seeds))
    trials = [
        {"trial": 0, "state": "complete", "value": 2.0, "params": {"lr": 1e-4, "model": "a/b"}, "curve": {"1": 3.0},
         "seconds": 4.0, "problem": None},
        {"trial": 1, "state": "pruned", "value": None, "params": {"lr": 1e-3, "model": "c"}, "curve": {"1": 9.0},
         "seconds": None, "problem": None},
    ]  # fmt: skip
    search = {"lr": {"from": 1e-5, "to": 1e-2, "log": True}, "model": ["a/b", "c"]}
    found = {"name": "s", "metric": "mse", "least_is_best": True, "asked": {"search": search}, "parts": 2, "best": 0,
             "trials": trials, "options": ["--lr", "1e-4"]}  # fmt: skip
    other = place / "sweep"
    other.mkdir()
    (other / "trials.json").write_text(json.dumps(found))
    return folder, other


def test_the_page_of_seeds_and_of_a_search(tmp_path: Path, run: Path) -> None:
    assert rewritten(run) is None
    folder, other = several(tmp_path)
    page = rewritten(folder)
    assert page is not None
    words = Text(page.read_text(encoding="utf-8")).words
    assert "mse 1.50 ± 6.40: mean over 2 seeds" in words and "no <memory>" in words
    assert here("page", other).returncode == 0
    text = (other / "page.html").read_text(encoding="utf-8")
    words = Text(text).words
    assert "1 have a result, 1 were ended early." in words and "bigqa train --lr 1e-4 --out RUN" in words
    assert text.count("<figure>") == 4 and "ended early" in words


NAMES = {"bigqa", "train", "resume", "out", "model", "file", "tiny", "json", "dev", "qa", "task", "seq", "len", "keep",
         "bf16", "GiB", "MiB", "EM", "exact", "match", "total", "min", "mse", "lr", "RUN", "precision", "recompute",
         "device", "seed", "too", "much", "no", "memory", "more", "run", "f1"}  # fmt: skip
"""Words of commands, settings, scores, units, and of what the test's own records say."""


OVERFLOWING = """
addEventListener("load", () => {
  document.documentElement.style.width = "WIDTHpx";  // a window is never narrower than 500
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const place = one.getBoundingClientRect(), drawing = one.ownerSVGElement;
    const scrolling = one.parentElement.closest(".wide");
    if (!place.width || one.closest("script, details:not([open])")) continue;
    if (scrolling && getComputedStyle(scrolling).overflowX === "auto") continue;
    const around = one.tagName === "text" ? drawing.getBoundingClientRect() : { left: 0, right: WIDTH };
    const isBeyond = place.right > around.right + 1 || place.left < around.left - 1;
    if (isBeyond) found.push(one.tagName + ": " + one.textContent.trim());
  }
  document.body.innerHTML = "<ol>" + found.map((text) => "<li></li>").join("") + "</ol>";
  document.querySelectorAll("li").forEach((line, at) => { line.textContent = found[at]; });
});
"""


def overflowing(place: Path, page: str, width: int) -> list[str]:
    """Return what of a page lies beyond its width, or of a drawing's words beyond the drawing; tables scroll."""
    script = OVERFLOWING.replace("WIDTH", str(width))
    return [
        line.get_text()
        for line in BeautifulSoup(shown(place / "shown.html", page, script, width), "lxml").select("ol li")
    ]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_of_a_korean_page_lies_beyond_it(run: Path, tmp_path: Path, width: int) -> None:
    finished(run)
    with patch.dict("os.environ", {VARIABLE: "ko"}):
        pages = [run_page(read_run(run))]
        pages += [page.read_text(encoding="utf-8") for folder in several(tmp_path) if (page := rewritten(folder))]
    assert [overflowing(tmp_path, page, width) for page in pages] == [[], [], []]
    wide = pages[0].replace("<h1>", f'<h1 style="width:{width}px">')
    assert [line[:3] for line in overflowing(tmp_path, wide, width)] == ["H1:"]


def test_pages_are_korean_where_korean_is_spoken(run: Path, tmp_path: Path) -> None:
    ended, pages = run_page(read_run(run)), []
    finished(run)
    with patch.dict("os.environ", {VARIABLE: "ko"}):
        pages += [run_page(read_run(run))]
        (run / "report.json").unlink()
        pages += [run_page(read_run(run))]
        pages += [page.read_text(encoding="utf-8") for folder in several(tmp_path) if (page := rewritten(folder))]
    assert len(pages) == 4 and '<html lang="en">' in ended and all('<html lang="ko">' in page for page in pages)
    for page in pages:
        titles = re.findall(r'aria-label="([^"]*)"', page)
        apart = re.sub(r"(?s)<style>.*?</style>", "", page).replace("<", " <").replace(str(tmp_path), "")
        said = " ".join([Text(apart).words, *titles])
        assert set(re.findall(r"[A-Za-z][a-z0-9A-Z]+", said)) - NAMES == set()
        assert len(re.findall("[가-힣]+", said)) > 25
