"""KorQuAD 2.x from end to end: HTML documents in zips are trained on, predicted and scored."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from commands import Done, here, train_here

from bigqa.sample import FOLDER


def documents() -> list[dict[str, Any]]:
    """The sample's paragraphs as documents of HTML, each long enough for several windows."""
    source = json.loads((FOLDER / "dev.json").read_text(encoding="utf-8"))["data"][:6]
    found = []
    for number, article in enumerate(source):
        context, qas = "<html><body>", []
        for part in article["paragraphs"]:
            for qa in part["qas"]:
                text = qa["answers"][0]["text"]
                marked = part["context"].replace(text, f"<b>{text}</b>")
                context += "<p>"
                start = len(context) + marked.find("<b>")
                context += marked + "</p>"
                answer = {"text": f"<b>{text}</b>", "answer_start": start}
                answer |= {"html_answer_start": start, "html_answer_text": answer["text"]}
                qas.append({"id": qa["id"], "question": qa["question"], "answer": answer})
        context += "</body></html>"
        found.append({"title": f"{number}", "url": "", "context": context, "raw_html": context, "qas": qas})
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two zips of documents, as KorQuAD 2.x is given out."""
    folder = tmp_path / "korquad2"
    folder.mkdir()
    found = documents()
    for name, part in {"00": found[:3], "01": found[3:]}.items():
        with zipfile.ZipFile(folder / f"korquad2.1_train_{name}.zip", "w") as archive:
            value = {"version": "KorQuAD_2.1_train", "data": part}
            archive.writestr(f"korquad2.1_train_{name}.json", json.dumps(value, ensure_ascii=False))
    return folder


def said(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_predict_and_score(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, answers = tmp_path / "run", tmp_path / "answers.json"
    options = ["--seq-len", "128", "--doc-stride", "64", "--max-steps", "2", "--device", "cpu"]
    said(train_here("--model", "tiny", "--train-file", folder, "--dev-file", folder, "--out", run, *options))
    said(here("predict", run / "model", folder, answers))
    found = json.loads(answers.read_text(encoding="utf-8"))
    assert found.keys() == {qa["id"] for document in documents() for qa in document["qas"]}
    contexts = {qa["id"]: document["context"] for document in documents() for qa in document["qas"]}
    assert all(text in contexts[name] for name, text in found.items())
    scores = json.loads(said(here("evaluate", folder, answers, "--metric", "korquad2", "--json")))
    assert scores["total"] == 24 and scores["missing"] == 0
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["windows"] > 24  # several for each question
    assert report["scores"]["f1"] == pytest.approx(scores["f1"])


def test_inspect_reaches_every_answer(folder: Path) -> None:
    options = ["--seq-len", "128", "--max-query-length", "48", "--doc-stride", "64", "--json"]
    found = json.loads(said(here("data", "inspect", folder, "tiny", *options)))
    assert found["seq_128"]["answers_out_of_reach_share"] == 0
    assert found["seq_128"]["windows"] > found["seq_512"]["windows"] == 24
