"""Questions without an answer, as SQuAD 2 and KLUE-MRC have them: read, trained on, predicted, scored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import here, train_here

from bigqa.errors import BigqaError
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.sample import FOLDER
from bigqa.tasks import klue, nulls, squad2
from bigqa.tasks.features import build_features
from bigqa.tasks.postprocess import decode
from bigqa.tasks.rows import Rows
from bigqa.tasks.scoring import evaluate_files, metric_of, parts_of
from bigqa.tasks.squad import Question, has_impossible, read_questions
from bigqa.tasks.windows import Lengths

LONG = "가" * 150 + "나" * 60
# Golds, a prediction, and what the official `evaluate-v2.0.py` and KLUE's `klue_baseline/metrics/utils.py` answer.
OFFICIAL: list[tuple[list[str], str, tuple[float, float], tuple[float, float]]] = [
    ([], "", (1, 1), (1.0, 1.0)),
    ([], "서해", (0, 0), (0.0, 0.0)),
    (["서울"], "", (0, 0), (0.0, 0.0)),
    (["서울"], "서울특별시", (0, 0), (0.0, 0.5714285714285715)),
    (["the Cat, a dog"], "Cat dog", (1, 1.0), (0.0, 0.4)),
    (["a cat sat"], "the cat sat down", (0, 0.8), (0.0, 0.64)),
    (["...", "the"], "", (1, 1), (1.0, 1.0)),
    (["...", "the"], "x", (0, 0), (0.0, 0.0)),
    (["서울 시", "부산"], "서울  시!", (1, 1.0), (1.0, 1.0)),
    (["《춘향전》"], "춘향전", (0, 0), (0.0, 0.7499999999999999)),
    (['다"()‘’라'], "다 라", (0, 0), (1.0, 1.0)),
    (["세종 대왕"], "세종대왕", (0, 0), (0.0, 0.4444444444444445)),
    (["1397년 5월"], "1397년", (0, 0.6666666666666666), (0.0, 0.7692307692307693)),
    ([LONG], "가" * 150, (0, 0), (0.0, 0.8333333333333333)),
    (["가나다라마바사"], "라마바 가나다", (0, 0), (0.0, 0.42857142857142855)),
    (["!"], "", (1, 1), (1.0, 1.0)),
    (["an"], "an apple", (0, 0), (0.0, 0.4)),
    (["x"], "...", (0, 0), (0.0, 0.0)),
]


@pytest.mark.parametrize(("golds", "prediction", "of_squad", "of_klue"), OFFICIAL)
def test_scores_are_those_of_the_official_scripts(
    golds: list[str], prediction: str, of_squad: tuple[float, float], of_klue: tuple[float, float]
) -> None:
    for metric, (exact, overlap) in ((squad2, of_squad), (klue, of_klue)):
        found = metric.score({"q": golds}, {"q": prediction})
        assert (found.exact_match, found.f1) == (100 * exact, 100 * overlap), metric.__name__


def test_an_article_leaves_a_blank() -> None:
    """As the official script has it: what stood on both sides does not grow together."""
    assert squad2.normalize("x—the—y") == "x— —y"


CONTEXT = "한강은 서울을 지나 서해로 흐른다. 길이는 494킬로미터이다."
ANSWERED = {"question": "길이는?", "answers": [{"text": "494킬로미터", "answer_start": 24}], "is_impossible": False}
PLAUSIBLE = [{"text": "서해", "answer_start": 11}]
IMPOSSIBLE = {"question": "폭은?", "answers": [], "plausible_answers": PLAUSIBLE, "is_impossible": True}


def document(*qas: dict[str, Any]) -> dict[str, Any]:
    return {"data": [{"title": "강", "paragraphs": [{"context": CONTEXT, "qas": list(qas)}]}]}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return write(tmp_path / "v2.json", document(ANSWERED | {"id": "q1"}, IMPOSSIBLE | {"id": "q2"}))


@pytest.fixture
def of_klue(tmp_path: Path) -> Path:
    return write(tmp_path / "klue.json", document(ANSWERED | {"guid": "q1"}, IMPOSSIBLE | {"guid": "q2"}))


def test_no_answer_points_at_the_first_token(v2: Path, of_klue: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(resolve("tiny"))
    for file in (v2, of_klue):
        assert [(one.id, len(one.answers)) for one in read_questions(file, need_answers=True)] == [("q1", 1), ("q2", 0)]
        rows = build_features(file, tokenizer, Lengths(seq_len=96), training=True, cache_dir=tmp_path).table.to_pylist()
        assert [(row["start"] > 0, row["end"] > 0) for row in rows] == [(True, True), (False, False)]
        assert rows[1]["input_ids"][rows[1]["start"]] == tokenizer.cls_token_id


def test_rows_say_it_by_an_empty_list_or_with_answers_that_are_plausible(tmp_path: Path) -> None:
    """As the hub has SQuAD 2 and KLUE-MRC."""
    row = {"context": CONTEXT, "question": "폭은?"}
    texts = {"text": ["서해"], "answer_start": [11]}
    found = [row | {"id": "a", "answers": {"text": [], "answer_start": []}}]
    found += [row | {"guid": "b", "answers": texts, "is_impossible": True}, row | {"id": "c", "answers": texts}]
    file = write(tmp_path / "rows.json", found)
    assert [(one.id, len(one.answers)) for one in read_questions(file, need_answers=True)] == [
        ("a", 0),
        ("b", 0),
        ("c", 1),
    ]
    assert evaluate_files(file, write(tmp_path / "p.json", {"a": "", "b": "", "c": "서해"}), "squad2").f1 == 100.0


def test_the_metric_follows_the_questions(v2: Path, of_klue: Path, tmp_path: Path) -> None:
    assert (metric_of(v2), metric_of(of_klue)) == ("squad2", "klue")
    assert metric_of(write(tmp_path / "a.json", document(ANSWERED | {"id": "q"}))) == "korquad1"
    assert has_impossible(v2) and not has_impossible(tmp_path / "a.json")


def test_another_metric_is_named(v2: Path, of_klue: Path, tmp_path: Path) -> None:
    answers = write(tmp_path / "p.json", {})
    for file, metric in ((v2, "squad2"), (of_klue, "klue")):
        with pytest.raises(BigqaError, match=f"without an answer.*korquad1 cannot score; use --metric {metric}"):
            evaluate_files(file, answers, "korquad1")


def test_evaluate_says_how_it_is_on_each_kind(of_klue: Path, v2: Path, tmp_path: Path) -> None:
    answers = write(tmp_path / "p.json", {"q1": "494", "q2": ""})
    done = here("evaluate", of_klue, answers, "--json")
    found = json.loads(done.stdout)
    assert (found["metric"], found["exact_match"], found["total"], found["missing"]) == ("klue", 50.0, 2, 0)
    assert found["rouge_w"] == pytest.approx(50 * (1 + 2 * 3 / (3 + 7)))
    assert found["parts"]["without_an_answer"]["exact_match"] == 100.0
    assert "ROUGE-W" in here("evaluate", of_klue, answers).stdout
    assert parts_of(v2, answers, "squad2")["with an answer"].exact_match == 0.0


def test_data_of_impossible_questions_alone_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", document(IMPOSSIBLE | {"id": "q"}))
    with pytest.raises(BigqaError, match="holds no answer"):
        read_questions(file, need_answers=True)


def test_no_answer_competes_with_the_best_of_all_windows() -> None:
    row = {"question": 0, "context_begin": 2, "context_end": 4, "offset_start": [0, 1], "offset_end": [1, 2]}
    rows = [row | {"max_context_lo": 2, "max_context_hi": 4}] * 2
    # Index 0 is the first token: no answer scores 5 in one window and 4 in the other, the best span 1 + 2.
    logits = [(2.0, 0.0, 1.0, 0.0), (3.0, 0.0, 0.0, 2.0)], [(2.5, 0.0, 0.0, 0.0), (1.5, 0.0, 0.0, 0.0)]
    stream = [(number, np.array(start), np.array(end)) for number, (start, end) in enumerate(logits)]

    def answer(threshold: float | None) -> Any:
        questions = [Question("q", "?", "가나", (), "")]
        return decode(questions, Rows.of_columns(_columns(rows)), stream, Lengths(), null_threshold=threshold)

    assert answer(None)[0] == {"q": "가나"} and answer(1.0)[0] == {"q": "가나"} and answer(0.99)[0] == {"q": ""}
    assert [(one["text"], one["score"]) for one in answer(0.0)[1]["q"]][:2] == [("", 4.0), ("가나", 3.0)]


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_all(seed: int) -> None:
    draws = np.random.default_rng(seed)
    nbest, right = {}, {}
    for number in range(30):
        scores = draws.integers(0, 6, size=2)
        nbest[f"{number}"] = [{"text": "x", "score": int(scores[0])}, {"text": "", "score": int(scores[1])}]
        right[f"{number}"] = {"x": draws.random(), "": float(draws.random() < 0.4)}

    def total(threshold: float) -> float:
        return sum(right[name][nulls.answer_of(candidates, threshold)] for name, candidates in nbest.items())

    chosen = nulls.best_threshold(nbest, lambda name, text: right[name][text])
    assert total(chosen) == pytest.approx(max(map(total, np.arange(-7, 7, 0.5))))


def test_train_predict_and_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold that a run chooses on its dev file is the one that its model predicts by."""
    articles = json.loads((FOLDER / "dev.json").read_text(encoding="utf-8"))["data"][:4]
    for number, article in enumerate(articles):
        for part in article["paragraphs"]:
            for qa in part["qas"]:
                qa["guid"] = qa.pop("id")
                if number % 2:
                    qa |= {"answers": [], "is_impossible": True}
    data, run, answers = write(tmp_path / "klue.json", {"data": articles}), tmp_path / "run", tmp_path / "answers.json"
    options = ["--seq-len", "96", "--doc-stride", "32", "--max-query-length", "32", "--strategy", "cpu-fp32"]
    done = train_here(
        "--model", "tiny", "--train-file", data, "--dev-file", data, "--out", run, "--max-steps", "1", *options
    )
    assert done.returncode == 0 and "ROUGE-W" in done.stdout, done.stderr
    assert here("predict", run / "model", data, answers, "--precision", "fp32").returncode == 0
    found = json.loads(answers.read_text(encoding="utf-8"))
    assert found == json.loads((run / "predictions.json").read_text(encoding="utf-8"))
    scores = json.loads(here("evaluate", data, answers, "--json").stdout)
    scores.pop("parts")
    assert scores == json.loads((run / "report.json").read_text(encoding="utf-8"))["scores"]
    # Half of the questions have no answer: a model that has learned nothing does best to give none.
    assert scores["exact_match"] >= 50.0
    assert here("predict", run / "model", data, answers, "--null-threshold", "1000").returncode == 0
    assert all(json.loads(answers.read_text(encoding="utf-8")).values())


def test_the_public_case(shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / "public" / "18-squad2-klue"
    for name in ("v2", "klue"):
        done = here("data", "inspect", folder / f"{name}.json", "tiny", "--json")
        assert done.returncode == 0, done.stderr
        assert (
            json.loads(done.stdout)["counts"] | {"answers": 1, "unanswerable": 1, "questions": 2}
            == (json.loads(done.stdout)["counts"])
        )
    answers = write(tmp_path / "p.json", {"q1": "", "q2": ""})
    assert json.loads(here("evaluate", folder / "v2.json", answers, "--json").stdout)["exact_match"] == 50.0
