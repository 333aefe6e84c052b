"""Questions of each form are read alike, and each fault is said with its place."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bigqa.errors import BigqaError
from bigqa.tasks.squad import Answer, Question, iter_questions, read_questions

CONTEXT = "세종은 1397년에 태어났다."


def qa(name: str, text: str = "1397년", start: int = 4) -> dict[str, Any]:
    return {"id": name, "question": "언제?", "answers": [{"text": text, "answer_start": start}]}


def korquad1(*qas: dict[str, Any]) -> dict[str, Any]:
    return {"data": [{"title": "세종", "paragraphs": [{"context": CONTEXT, "qas": list(qas)}]}]}


def korquad2(*names: str) -> dict[str, Any]:
    answer = {"text": "<b>1397년</b>", "answer_start": 7, "html_answer_start": 7, "html_answer_text": "<b>1397년</b>"}
    qas = [{"id": name, "question": "언제?", "answer": answer} for name in names]
    context = "<p>세종은 <b>1397년</b>에 태어났다.</p>"
    return {"version": "KorQuAD_2.1", "data": [{"title": "세종", "url": "", "context": context, "qas": qas}]}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def test_a_question_of_korquad1(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", korquad1(qa("q1")))
    assert read_questions(file, need_answers=True) == [Question("q1", "언제?", CONTEXT, (Answer("1397년", 4),), "세종")]


def test_a_question_of_korquad2_keeps_its_markup(tmp_path: Path) -> None:
    [question] = read_questions(write(tmp_path / "a.json", korquad2("q1")), need_answers=True)
    assert question.answers == (Answer("<b>1397년</b>", 7),)
    assert question.context[7:].startswith(question.answers[0].text)


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_documents_is_one_data_set(tmp_path: Path, packed: bool) -> None:
    for name in ("b", "a"):
        file = write(tmp_path / f"{name}.json", korquad2(f"{name}1", f"{name}2"))
        if packed:
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
                archive.write(file, file.name)
            file.unlink()
    found = [question.id for question in iter_questions(tmp_path, need_answers=True)]
    assert found == ["a1", "a2", "b1", "b2"]


def test_documents_are_read_one_at_a_time(tmp_path: Path) -> None:
    write(tmp_path / "a.json", korquad2("a1"))
    (tmp_path / "b.json").write_text("{ broken")
    stream = iter_questions(tmp_path, need_answers=True)
    assert next(stream).id == "a1"
    with pytest.raises(BigqaError, match=r"b\.json"):
        next(stream)


def test_predicting_needs_no_answers(tmp_path: Path) -> None:
    bare = korquad1({"id": "q1", "question": "언제?"})
    [question] = read_questions(write(tmp_path / "a.json", bare), need_answers=False)
    assert question.answers == ()


def test_the_limit_counts_questions(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", korquad1(*(qa(f"q{number}") for number in range(5))))
    assert [question.id for question in read_questions(file, need_answers=True, limit=2)] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (korquad1(qa("q1"), qa("q1")), "question id 'q1' is there twice"),
        (korquad1(qa("q1", start=5)), "the answer '1397년' is not in its context at 5; it is at 4"),
        (korquad1(qa("q1", text="1400년")), "the answer '1400년' is not in its context at 4; it is nowhere in it"),
        (korquad1(qa("q1", start=-9)), "is not in its context at -9"),
        (korquad1(qa("q1", text="")), "the answer '' is not in its context"),
        (korquad1({"id": "q1", "question": "언제?", "answers": []}), "id 'q1' has no answer"),
        (korquad1({"id": "q1", "question": "  ", "answers": []}), "the question is empty"),
        (korquad1({"id": "q1", "question": "\u200b\ufeff", "answers": []}), "the question is empty"),
        (korquad1({"id": 7, "question": "언제?"}), '"id" is a number, not text'),
        (
            korquad1({"id": "q1", "question": "언제?", "answers": [{"text": "세", "answer_start": "0"}]}),
            "is text, not a",
        ),
        ({"data": []}, "holds no question"),
        ({"dat": []}, 'has no "data"'),
        ([], "is a list, not an object"),
        ({"data": [{"title": "세종"}]}, 'has no "paragraphs"'),
        ({"data": [3]}, "data[0] is a number, not an object"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path: Path, value: Any, message: str) -> None:
    file = write(tmp_path / "a.json", value)
    with pytest.raises(BigqaError) as caught:
        read_questions(file, need_answers=True)
    assert message in str(caught.value) and "a.json" in str(caught.value)
