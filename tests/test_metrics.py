"""The KorQuAD metrics against what the official scripts gave, and against figures worked out by hand."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from bigqa.errors import BigqaError
from bigqa.tasks import korquad1, korquad2
from bigqa.tasks.korquad1 import Score

METRICS = {"korquad1": korquad1, "korquad2": korquad2}


def official_cases(shared: Path, metric: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((shared / f"cases/{metric}_eval_cases.json").read_text("utf-8"))["cases"]
    assert len(cases) == {"korquad1": 37, "korquad2": 51}[metric]
    return cases


@pytest.mark.parametrize("metric", METRICS)
def test_every_official_case(shared: Path, metric: str) -> None:
    module = METRICS[metric]
    wrong = []
    for case in official_cases(shared, metric):
        prediction, golds = case["prediction"], case["references"]
        found = {
            "em": max(module.exact_match(prediction, gold) for gold in golds),
            "f1": max(module.f1(prediction, gold) for gold in golds),
            "normalized_prediction": module.normalize(prediction),
            "normalized_references": [module.normalize(gold) for gold in golds],
        }
        wrong += [(case["name"], key, value, case[key]) for key, value in found.items() if value != case[key]]
    assert not wrong


@pytest.mark.parametrize("metric", METRICS)
def test_every_official_case_through_score(shared: Path, metric: str) -> None:
    for case in official_cases(shared, metric):
        score = METRICS[metric].score({"q": case["references"]}, {"q": case["prediction"]})
        assert score == Score(100.0 * case["em"], 100.0 * case["f1"], 1, 0), case["name"]


def test_f1_by_hand() -> None:
    # 세종 대왕 | 세종이: two characters shared of four and of three, P = 1/2, R = 2/3.
    assert korquad1.f1("세종 대왕", "세종이") == pytest.approx(4 / 7)
    assert korquad1.f1("가나", "다라") == 0
    # A multiset: of the three 가 only the two of the gold count. P = 2/3, R = 1.
    assert korquad1.f1("가가가", "가가") == pytest.approx(0.8)


@pytest.mark.parametrize("mark", "'\"《》<>〈〉()‘’")
def test_marks_that_part_words(mark: str) -> None:
    assert korquad1.normalize(f"서울{mark}시") == "서울 시"


@pytest.mark.parametrize("mark", "!#$%&*+,-./:;=?@[\\]^_`{|}~")
def test_marks_that_vanish(mark: str) -> None:
    assert korquad1.normalize(f"서울{mark}시") == "서울시"


@pytest.mark.parametrize("mark", "“”「」『』【】·–（）\u200b")
def test_marks_that_stay(mark: str) -> None:
    assert korquad1.normalize(f"서울{mark}시") == f"서울{mark}시"


def test_spaces_part_answers_in_version_1_only() -> None:
    assert korquad1.exact_match("서울 시", "서울시") == 0
    assert korquad2.exact_match("서울 시", "서울시") == 1
    assert korquad1.f1("서울 시", "서울시") == 1


def test_tags_go_in_version_2_only() -> None:
    assert korquad2.exact_match("<td>332cm</td>", "332 cm") == 1
    assert korquad1.exact_match("<td>332cm</td>", "332 cm") == 0


def test_score_by_hand() -> None:
    golds = {"a": ["서울"], "b": ["부산", "부산시"], "c": ["대구"], "d": ["가나다라"]}
    score = korquad1.score(golds, {"a": "서울", "b": "부산시", "d": "가나", "unknown": None})
    # d: P = 1, R = 1/2, F1 = 2/3. c is missing: it scores 0 and counts.
    assert (score.exact_match, score.total, score.missing) == (50.0, 4, 1)
    assert score.f1 == pytest.approx(100 * (1 + 1 + 2 / 3) / 4)


def test_each_measure_takes_its_own_best_gold() -> None:
    # Worked out: both empty match exactly with F1 0; the other gold shares nothing either.
    assert korquad1.score({"q": ["서울", ""]}, {"q": ""}) == Score(100.0, 0.0, 1, 0)


def test_korquad2_keeps_quiet_on_odd_answers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in (
            "http://a.kr/b",
            "a.json",
            '<?xml version="1.0"?>가',
            "<",
            "",
            "<" * 3000,
            "<div>" * 3000,
        ):
            korquad2.normalize(text)


def test_the_sample_predictions_of_2_against_themselves(shared: Path) -> None:
    predictions = json.loads((shared / "data/korquad2/sample_prediction_2.0.json").read_text("utf-8"))
    golds = {question: [text] for question, text in list(predictions.items())[:500]}
    score = korquad2.score(golds, predictions)
    assert (score.exact_match, score.total, score.missing) == (100.0, 500, 0)
    assert score.f1 == 100.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("golds", "predictions", "message"),
    [
        ({}, {}, "no question to score"),
        ({"q7": []}, {"q7": "가"}, "question 'q7' has an empty list of gold answers"),
        ({"q7": []}, {}, "question 'q7' has an empty list of gold answers"),
        ({"q7": ["가"]}, {"q7": None}, "prediction of question 'q7' is null, not text"),
        ({"q7": ["가"]}, {"q7": 1}, "prediction of question 'q7' is int, not text"),
        ({"q7": ["가"]}, {"q7": ["가"]}, "prediction of question 'q7' is list, not text"),
        ({"q7": [None]}, {"q7": "가"}, "gold answer of question 'q7' is null, not text"),
    ],
)
def test_bad_values_name_the_question(metric: str, golds: Any, predictions: Any, message: str) -> None:
    with pytest.raises(BigqaError, match=message) as caught:
        METRICS[metric].score(golds, predictions)
    assert "\n" not in str(caught.value)


def test_korquad2_refuses_what_it_cannot_score() -> None:
    with pytest.raises(BigqaError, match="question 'q' has 2 gold answers"):
        korquad2.score({"q": ["가", "나"]}, {"q": "가"})
    with pytest.raises(BigqaError, match="prediction of question 'q' holds half a surrogate pair"):
        korquad2.score({"q": ["가"]}, {"q": "\ud800"})


def test_korquad1_takes_half_a_surrogate_pair_as_the_official_script_does() -> None:
    assert korquad1.score({"q": ["가"]}, {"q": "\ud800가"}).f1 == pytest.approx(200 / 3)
