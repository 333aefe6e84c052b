"""Scores from files: the official whole-file cases, every form of gold, and every message for a bad file."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigqa.errors import BigqaError, UsageError
from bigqa.tasks.korquad1 import Score
from bigqa.tasks.scoring import METRICS, evaluate_files

Write = Callable[[str, Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write bytes, text or a value as JSON under the test's folder."""

    def _write(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
        return path

    return _write


def gold1(**answers: list[str]) -> dict[str, Any]:
    qas = [
        {"id": key, "question": "?", "answers": [{"text": text, "answer_start": 0} for text in texts]}
        for key, texts in answers.items()
    ]
    return {
        "version": "KorQuAD_v1.0_dev",
        "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": qas}]}],
    }


def gold2(**answers: str) -> dict[str, Any]:
    qas = [{"id": key, "question": "?", "answer": {"text": text, "answer_start": 0}} for key, text in answers.items()]
    article = {"title": "t", "url": "u", "context": "c", "raw_html": "c", "qas": qas}
    return {"version": "KorQuAD_2.1", "data": [article]}


def zip_of(path: Path, **members: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in members.items():
            archive.writestr(f"inside/{name}.json", json.dumps(value, ensure_ascii=False))
    return path


def error_of(gold: Path, predictions: Path, metric: str = "korquad1") -> str:
    with pytest.raises(BigqaError) as caught:
        evaluate_files(gold, predictions, metric)
    message = str(caught.value)
    assert "\n" not in message
    return message


def official(shared: Path, metric: str) -> list[dict[str, Any]]:
    text = (shared / f"cases/{metric}_eval_cases.json").read_text("utf-8")
    cases: list[dict[str, Any]] = json.loads(text)["dataset_level_cases"]
    assert len(cases) == {"korquad1": 5, "korquad2": 3}[metric]
    return cases


def check_official(case: dict[str, Any], gold: Path, predictions: Path, metric: str) -> None:
    """Equal figures where the official script gives some, one clear line where it crashes."""
    if case["stdout"] is None:
        error_of(gold, predictions, metric)
        return
    score = evaluate_files(gold, predictions, metric)
    assert {"exact_match": score.exact_match, "f1": score.f1} == case["stdout"], case["name"]


def test_official_files_of_1(shared: Path, write: Write) -> None:
    for case in official(shared, "korquad1"):
        gold = write("gold.json", case["dataset"])
        check_official(case, gold, write("predictions.json", case["predictions"]), "korquad1")


def test_official_files_of_2(shared: Path, write: Write, tmp_path: Path) -> None:
    for number, case in enumerate(official(shared, "korquad2")):
        folder = tmp_path / f"gold{number}"
        folder.mkdir()
        for name, articles in case["files"].items():
            write(f"gold{number}/{name}", {"version": "KorQuAD_2.0", "data": articles})
        check_official(case, folder, write("predictions.json", case["predictions"]), "korquad2")


def test_the_golds_of_korquad_1_score_100(shared: Path) -> None:
    folder = shared / "data/korquad1"
    score = evaluate_files(folder / "KorQuAD_v1.0_dev.json", folder / "dev-evaluate-in1", "korquad1")
    assert score == Score(100.0, 100.0, 5774, 0)


def test_missing_ids_count(write: Write) -> None:
    gold = write("gold.json", gold1(a=["서울"], b=["부산"], c=["대구", "대구시"], d=["가나다라"]))
    score = evaluate_files(gold, write("p.json", {"a": "서울", "c": "대구시", "d": "가나", "z": 1}), "korquad1")
    assert (score.exact_match, score.total, score.missing) == (50.0, 4, 1)
    assert score.f1 == pytest.approx(100 * (1 + 0 + 1 + 2 / 3) / 4)


def test_answers_of_other_data_are_refused(write: Write) -> None:
    gold = write("gold.json", gold1(a=["서울"]))
    with pytest.raises(BigqaError, match=r"no question of .*gold\.json is in .*p\.json, whose first is 'data'"):
        evaluate_files(gold, write("p.json", {"data": []}), "korquad1")
    assert evaluate_files(gold, write("p.json", {}), "korquad1").missing == 1


def test_xquad_is_read_as_korquad_1(shared: Path, write: Write) -> None:
    score = evaluate_files(shared / "data/squad_like/xquad.en.json", write("p.json", {}), "korquad1")
    assert score == Score(0.0, 0.0, 1190, 1190)


def test_a_byte_order_mark_is_no_matter(write: Write) -> None:
    gold = write("gold.json", json.dumps(gold1(a=["서울"])).encode("utf-8-sig"))
    assert evaluate_files(gold, write("p.json", {"a": "서울"}), "korquad1").exact_match == 100.0


def test_every_form_of_gold_of_2_scores_alike(write: Write, tmp_path: Path) -> None:
    one, two = gold2(a="<td>서울</td>"), gold2(b="부산", c="대구")
    write("files/1.json", one)
    write("files/2.JSON", two)
    write("files/._1.json", b"\xff\x00")  # what a Mac leaves beside each file
    zip_of(tmp_path / "files/old.zip", old=gold2(z="인천"))  # left beside JSON files: not counted
    zip_of(tmp_path / "both.zip", one=one, two=two)
    zip_of(tmp_path / "zips/1.zip", one=one)
    zip_of(tmp_path / "zips/2.zip", two=two)
    write("single.json", {"version": "2", "data": one["data"] + two["data"]})
    predictions = write("p.json", {"a": "서 울", "b": "<b>부산</b>"})
    for gold in ("files", "zips", "both.zip", "single.json"):
        score = evaluate_files(tmp_path / gold, predictions, "korquad2")
        assert (score.total, score.missing) == (3, 1), gold
        assert score.exact_match == score.f1 == pytest.approx(200 / 3), gold


def test_unknown_metric_names_the_choices(write: Write) -> None:
    with pytest.raises(UsageError, match="unknown metric 'squad'; choose one of korquad1, korquad2, squad2, klue"):
        evaluate_files(write("g.json", gold1(a=["가"])), write("p.json", {}), "squad")


BAD_FILES = [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b'{"a": "b', "p.json"),
    (b"hello", "is not JSON"),
    ('{"a": "서울"}'.encode("euc-kr"), "is not UTF-8 at byte 7"),
    (b"[" * 100_000, "nested too deep"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
@pytest.mark.parametrize("metric", METRICS)
def test_unreadable_predictions(write: Write, metric: str, content: bytes, message: str) -> None:
    gold = write("g.json", gold1(a=["가"]) if metric == "korquad1" else gold2(a="가"))
    found = error_of(gold, write("p.json", content), metric)
    assert message in found
    assert "predictions file" in found and "p.json" in found


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
@pytest.mark.parametrize("metric", METRICS)
def test_unreadable_golds(write: Write, metric: str, content: bytes, message: str) -> None:
    found = error_of(write("p.json", content), write("right.json", {"a": "가"}), metric)
    assert message in found
    assert "gold file" in found and "p.json" in found


@pytest.mark.parametrize("metric", METRICS)
def test_absent_files(write: Write, tmp_path: Path, metric: str) -> None:
    there, absent = write("g.json", gold1(a=["가"])), tmp_path / "absent.json"
    assert f"gold file not found: {absent}" in error_of(absent, write("p.json", {}), metric)
    assert f"predictions file not found: {absent}" in error_of(there, absent, metric)
    assert "predictions file is a folder" in error_of(there, tmp_path, metric)


def test_a_folder_is_gold_of_1_as_well(write: Write, tmp_path: Path) -> None:
    for name in "ab":
        write(f"gold/{name}.json", gold1(**{name: ["서울"]}))
    assert evaluate_files(tmp_path / "gold", write("p.json", {"a": "서울"}), "korquad1") == Score(50.0, 50.0, 2, 1)


@pytest.mark.parametrize(
    ("value", "name"),
    [([], "a list"), ("text", "text"), (None, "null"), (1, "a number"), (True, "true or false")],
)
def test_predictions_must_be_an_object(write: Write, value: Any, name: str) -> None:
    found = error_of(write("g.json", gold1(a=["가"])), write("p.json", json.dumps(value)))
    assert f"predictions file is {name}:" in found and "p.json" in found and "{id: text}" in found


def test_a_bad_value_names_question_and_files(write: Write) -> None:
    gold, predictions = write("g.json", gold1(q7=["가"])), write("p.json", {"q7": None})
    found = error_of(gold, predictions)
    assert "prediction of question 'q7' is null" in found and str(predictions) in found
    found = error_of(write("g.json", gold1(q7=[])), predictions)
    assert "question 'q7' has an empty list of gold answers" in found and str(gold) in found


QA1 = {"id": "a", "question": "?", "answers": [{"text": "가", "answer_start": 0}]}
QA2 = {"id": "a", "question": "?", "answer": {"text": "가", "answer_start": 0}}


def qas1(*qas: Any) -> dict[str, Any]:
    return {"data": [{"paragraphs": [{"context": "c", "qas": list(qas)}]}]}


def qas2(*qas: Any) -> dict[str, Any]:
    return {"data": [{"title": "t", "qas": list(qas)}]}


@pytest.mark.parametrize(
    ("metric", "gold", "message"),
    [
        ("korquad1", [], "g.json is a list, not an object"),
        ("korquad1", {"version": "1"}, 'g.json has no "data"'),
        ("korquad1", {"data": {}}, 'g.json: "data" is an object, not a list'),
        ("korquad1", {"data": []}, "holds no question"),
        ("korquad1", {"data": [None]}, "data[0] is null, not an object"),
        ("korquad1", {"data": [{"paragraphs": [{}]}]}, 'data[0] paragraphs[0] has no "qas"'),
        ("korquad1", qas1(QA1, {**QA1, "id": 7}), 'data[0] paragraphs[0] qas[1]: "id" is a number, not text'),
        ("korquad1", qas1({"id": "a"}), 'qas[0] has no "answers"'),
        ("korquad1", qas1({"id": "a", "answers": [{}]}), 'qas[0] answers[0] has no "text"'),
        ("korquad1", qas1({"id": "a", "answers": [{"text": None}]}), 'answers[0]: "text" is null, not text'),
        ("korquad1", qas1(QA1, QA1), "question id 'a' is there twice"),
        ("korquad1", gold2(a="가"), 'data[0] has no "paragraphs"; choose the metric of this data set'),
        ("korquad2", gold1(a=["가"]), 'data[0] has no "qas"; choose the metric of this data set'),
        ("korquad2", qas2({**QA2, "id": 7}), 'data[0] qas[0]: "id" is a number, not text'),
        ("korquad2", qas2({"id": "a", "answer": []}), 'qas[0]: "answer" is a list, not an object'),
        ("korquad2", qas2({"id": "a", "answer": {}}), 'qas[0].answer has no "text"'),
        ("korquad2", qas2(QA2, QA2), "question id 'a' is there twice"),
        ("korquad2", qas2(), "holds no question"),
    ],
)
def test_wrong_forms_say_where(write: Write, metric: str, gold: Any, message: str) -> None:
    found = error_of(write("g.json", gold), write("p.json", {"a": "가"}), metric)
    assert message in found and "g.json" in found


def test_the_same_id_in_two_files_names_both(write: Write, tmp_path: Path) -> None:
    write("gold/1.json", gold2(a="가"))
    write("gold/2.json", gold2(a="가"))
    found = error_of(tmp_path / "gold", write("p.json", {}), "korquad2")
    assert "1.json data[0] qas[0]" in found and "2.json data[0] qas[0]" in found


def test_a_folder_without_golds(write: Write, tmp_path: Path) -> None:
    write("gold/readme.txt", "nothing")
    found = error_of(tmp_path / "gold", write("p.json", {}), "korquad2")
    assert f"holds no data (.json, .jsonl, .ndjson, .parquet, .arrow, .tsv, .csv, .zip): {tmp_path / 'gold'}" in found


def test_bad_zips(write: Write, tmp_path: Path) -> None:
    predictions = write("p.json", {"a": "가"})
    assert "gold file not found" in error_of(tmp_path / "no.zip", predictions, "korquad2")
    assert "cannot be unpacked" in error_of(write("text.zip", "no zip at all"), predictions, "korquad2")
    assert "cannot be unpacked" in error_of(write("empty.zip", b""), predictions, "korquad2")
    assert "zip holds no data (.json," in error_of(zip_of(tmp_path / "none.zip"), predictions, "korquad2")
    whole = zip_of(tmp_path / "whole.zip", one=gold2(a="가" * 500)).read_bytes()
    assert "cannot be unpacked" in error_of(write("cut.zip", whole[: len(whole) // 2]), predictions, "korquad2")


def test_a_zip_with_a_spoilt_member(write: Write, tmp_path: Path) -> None:
    content = bytearray(zip_of(tmp_path / "whole.zip", one=gold2(a="가" * 500)).read_bytes())
    for place in range(60, 80):
        content[place] ^= 0xFF
    found = error_of(write("spoilt.zip", bytes(content)), write("p.json", {}), "korquad2")
    assert "spoilt.zip" in found and "cannot be unpacked" in found


def test_an_encrypted_zip(write: Write, tmp_path: Path) -> None:
    content = bytearray(zip_of(tmp_path / "whole.zip", one=gold2(a="가")).read_bytes())
    content[6] |= 1  # the flag of encryption, in the member's own header and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "cannot be unpacked" in error_of(write("locked.zip", bytes(content)), write("p.json", {}), "korquad2")


def test_a_bad_member_of_a_zip_is_named(write: Write, tmp_path: Path) -> None:
    found = error_of(zip_of(tmp_path / "z.zip", one=[1]), write("p.json", {}), "korquad2")
    assert "z.zip/inside/one.json is a list, not an object" in found
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("one.json", "hello")
    found = error_of(tmp_path / "y.zip", write("p.json", {}), "korquad2")
    assert "is not JSON" in found and "y.zip/one.json" in found
