"""Whole files of answers whose scores were worked out by hand: what the official scripts count, without their data.

Of each question: the golds, the answer given, EM, F1. Shared characters s, p given and g wanted: F1 = 2s / (p + g).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from bigqa.tasks.korquad1 import Score
from bigqa.tasks.scoring import evaluate_files

Case = tuple[list[str], str | None, float, float]
MISSING = None
KORQUAD1: dict[str, Case] = {
    "the same": (["세종대왕"], "세종대왕", 1, 1),
    "a josa more": (["서울"], "서울에서", 0, 2 * 2 / (4 + 2)),
    "a josa less": (["서울에서"], "서울", 0, 2 * 2 / (2 + 4)),
    "ASCII punctuation vanishes": (["1,000명"], "1000명.", 1, 1),
    "and leaves a word whole": (["A-1 전차"], "A1 전차", 1, 1),
    "brackets part words": (["《논어》"], "논어", 1, 1),
    "and stay spaces within": (["(가)나"], "가나", 0, 1),
    "quotes of both kinds": (["‘가’ 나"], "'가'\"나", 1, 1),
    "corner brackets stay": (["서울"], "「서울」", 0, 2 * 2 / (4 + 2)),
    "letters of either case": (["KBS 1TV"], "kbs 1tv", 1, 1),
    "spaces of any length": (["조선  왕조\n실록"], " 조선 왕조 실록 ", 1, 1),
    "one gold of three": (["이순신 장군", "이순신", "충무공"], "이순신", 1, 1),
    "near to two golds": (["이순신 장군", "이순신", "충무공"], "충무공 이순신", 0, 2 * 3 / (6 + 3)),
    "as a multiset": (["하하"], "하하하", 0, 2 * 2 / (3 + 2)),
    "in any order": (["대한민국"], "민국대한", 0, 1),
    "a tag is text": (["<td>3cm</td>"], "3cm", 0, 2 * 3 / (3 + 7)),  # "td 3cm td": brackets and `/` go
    "nothing shared": (["서울"], "부산", 0, 0),
    "nothing given": (["서울"], "", 0, 0),
    "nothing wanted": ([""], "", 1, 0),
    "not answered": (["서울"], MISSING, 0, 0),
}
KORQUAD2: dict[str, Case] = {
    "the same": (["세종대왕"], "세종대왕", 1, 1),
    "a josa more": (["<b>서울</b>"], "서울은", 0, 2 * 2 / (3 + 2)),
    "tags go": (["<td>332cm</td>"], "332 cm", 1, 1),
    "what a tag says of itself too": (['<a href="#서울" title="서울">부산</a>'], "서울", 0, 0),
    "spaces go": (["조선 왕조 실록"], "조선왕조실록", 1, 1),
    "a table": (["<table><tr><td>1</td><td>2</td></tr></table>"], "1 2", 1, 1),
    "an entity": (["A&amp;B"], "ab", 1, 1),
    "punctuation": (["1,000"], "1000.", 1, 1),
    "brackets": (["(가)나"], "가나", 1, 1),
    "a half": (["대한민국"], "<p>대한</p>", 0, 2 * 2 / (2 + 4)),
    "a tag cut in two": (["서울"], "<td>서울</t", 1, 1),
    "nothing given": (["서울"], "", 0, 0),
    "not answered": (["서울"], MISSING, 0, 0),
}
EM1, F1_1 = 9, 10 + 4 * 2 / 3 + 0.8 + 0.6
EM2, F1_2 = 8, 8 + 0.8 + 2 / 3
"""Sums over all questions, counted by hand: ten of 1, four of 2/3, and so on."""


def score(folder: Path, metric: str, cases: dict[str, Case]) -> Score:
    """Write the cases as a data set of this metric's form and score the answers."""
    if metric == "korquad1":
        qas: list[Any] = [
            {"id": name, "question": "?", "answers": [{"text": text, "answer_start": 0} for text in golds]}
            for name, (golds, *_) in cases.items()
        ]
        article: dict[str, Any] = {"title": "t", "paragraphs": [{"context": "c", "qas": qas}]}
    else:
        qas = [
            {"id": name, "question": "?", "answer": {"text": gold, "answer_start": 0}}
            for name, ([gold], *_) in cases.items()
        ]
        article = {"title": "t", "url": "u", "context": "c", "raw_html": "c", "qas": qas}
    answers = {name: given for name, (_, given, *_) in cases.items() if given is not MISSING}
    for name, value in (("gold", {"version": metric, "data": [article]}), ("answers", answers)):
        (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return evaluate_files(folder / "gold.json", folder / "answers.json", metric)


@pytest.mark.parametrize("name", KORQUAD1)
def test_an_answer_of_korquad_1(tmp_path: Path, name: str) -> None:
    _, given, exact_match, f1 = KORQUAD1[name]
    found = score(tmp_path, "korquad1", {name: KORQUAD1[name]})
    assert (found.exact_match, found.total, found.missing) == (100 * exact_match, 1, int(given is MISSING))
    assert found.f1 == pytest.approx(100 * f1)


@pytest.mark.parametrize("name", KORQUAD2)
def test_an_answer_of_korquad_2(tmp_path: Path, name: str) -> None:
    _, given, exact_match, f1 = KORQUAD2[name]
    found = score(tmp_path, "korquad2", {name: KORQUAD2[name]})
    assert (found.exact_match, found.total, found.missing) == (100 * exact_match, 1, int(given is MISSING))
    assert found.f1 == pytest.approx(100 * f1)


@pytest.mark.parametrize(
    ("metric", "cases", "exact_match", "f1"), [("korquad1", KORQUAD1, EM1, F1_1), ("korquad2", KORQUAD2, EM2, F1_2)]
)
def test_a_whole_file(tmp_path: Path, metric: str, cases: dict[str, Case], exact_match: float, f1: float) -> None:
    found = score(tmp_path, metric, cases)
    assert (found.total, found.missing) == (len(cases), 1)
    assert found.exact_match == pytest.approx(100 * exact_match / len(cases))
    assert found.f1 == pytest.approx(100 * f1 / len(cases))
