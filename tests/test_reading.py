"""How data is read and fetched: what goes together, and what is said when a server breaks off."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertTokenizerFast

from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, atomic_path, read_json
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.tasks import download, features
from bigqa.tasks.inspection import inspect_file
from bigqa.tasks.published import published_answers
from bigqa.tasks.scoring import metric_of
from bigqa.tasks.squad import Answer, Question, read_questions
from bigqa.tasks.windows import Lengths

SAMPLE = Path(__file__).parents[1] / "bigqa" / "sample" / "dev.json"


def question(number: int, context: str) -> Question:
    return Question(id=str(number), title="t", context=context, question="?", answers=())


def test_a_context_that_many_questions_share_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH_CHARACTERS", 25)
    monkeypatch.setattr(features, "BATCH_QUESTIONS", 4)
    contexts = ["a" * 10] * 3 + ["b" * 10] + ["c" * 20, "c" * 20, "d" * 30]
    batches = list(features._batches(question(number, text) for number, text in enumerate(contexts)))
    assert [[int(one.id) for one in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5], [6]]
    assert list(features._batches([])) == []


class BrokenOff:
    def __init__(self, error: Exception) -> None:
        self.error, self.left = error, [b"abc"]

    def read1(self, size: int) -> bytes:
        if self.left:
            return self.left.pop()
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError("timed out"), "timed out"),
        (download.http.client.IncompleteRead(b""), "IncompleteRead"),
        (OSError(), "OSError"),
    ],
)
def test_a_download_that_breaks_off_says_why_and_how_to_go_on(error: Exception, said: str) -> None:
    chunks: Any = download._chunks("https://example.org/a.json", BrokenOff(error))
    assert next(chunks) == b"abc"
    with pytest.raises(BigqaError, match=said) as caught:
        next(chunks)
    assert "same command again" in str(caught.value) and "https://example.org/a.json" in str(caught.value)


def test_lengths_are_those_of_the_tokens_alone_where_a_window_has_room() -> None:
    tokenizer = load_tokenizer(resolve("tiny"))
    # 32 of a question, 349 of an advance and 3 special tokens are 384; the window of 381 has none of it left.
    found = inspect_file(SAMPLE, tokenizer, Lengths(seq_len=383, max_query_length=32, doc_stride=349))
    assert {name for name in found if name.startswith("seq_")} == {"seq_384", "seq_512"}
    questions = read_questions(SAMPLE, need_answers=True)
    texts = {
        "question": [one.question for one in questions],
        "context": sorted({one.context for one in questions}),
        "answer": [one.answers[0].text for one in questions],
    }
    for kind, values in texts.items():
        sizes = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in values]
        assert found["percentiles_tokens"][kind]["p100"] == max(sizes)
        assert found["percentiles_tokens"][kind]["p50"] == np.percentile(sizes, 50, method="nearest")
    assert found["counts"]["questions"] == len(questions) and found["counts"]["paragraphs"] == len(texts["context"])
    assert found["seq_512"]["ceiling_em"] == 100.0


def test_the_published_way_back_from_pieces_ends_inside_of_a_word(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kor", "##quad", "##s", "dev", "가", "(", ")"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=True)

    def answer(context: str, text: str, longest: int = 30) -> str:
        one = Question("q", "?", context, (Answer(text, context.index(text)),), "t")
        return published_answers([one], tokenizer, longest)["q"]

    # Lower case and brackets are seen through; a part of a word that has other pieces alone is not.
    assert answer("가 (KorQuAD) dev", "KorQuAD") == "KorQuAD"
    assert answer("가 KorQuADs dev", "KorQuAD") == "KorQuAD" and answer("가 KorQuADs dev", "QuAD") == "KorQuADs"
    assert answer("KorQuADs dev", "QuAD") == "KorQuADs" and answer("dev KorQuADs", "QuAD") == "KorQuADs"
    assert answer("가 KorQuAD dev", "KorQuAD dev", 3) == "KorQuAD dev"
    assert answer("가 KorQuAD dev", "KorQuAD dev", 2) == ""


@pytest.mark.parametrize(
    ("articles", "metric"),
    [
        ([{"title": "t", "paragraphs": []}], "korquad1"),
        ([{"title": "t", "context": "<p>가</p>", "qas": []}], "korquad2"),
        (["no article"], "korquad1"),
        ([], "korquad1"),
    ],
)
def test_the_metric_follows_the_form_of_the_first_article(tmp_path: Path, articles: list[Any], metric: str) -> None:
    (tmp_path / "gold.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    assert metric_of(tmp_path / "gold.json") == metric


def test_a_short_context_is_the_tokenizers_own_pair(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(resolve("tiny"))
    questions = [
        {"id": str(number), "question": text, "answers": [{"text": "서울", "answer_start": 0}]}
        for number, text in enumerate(("수도는 어디인가?", "어디"))
    ]
    context = "서울은 대한민국의 수도이다."
    document = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]}
    (tmp_path / "train.json").write_text(json.dumps(document), encoding="utf-8")
    rows = features.build_features(
        tmp_path / "train.json", tokenizer, Lengths(seq_len=256), training=True, cache_dir=tmp_path
    )
    for row, one in zip(rows, questions, strict=True):
        theirs = tokenizer(one["question"], context)
        assert all(row[name].tolist() == theirs[name] for name in ("input_ids", "token_type_ids"))
        first, last = row["start"], row["end"]
        begin, end = theirs.token_to_chars(first).start, theirs.token_to_chars(last).end
        assert context[begin:end] == "서울" or context[begin:end].startswith("서울")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BigqaError, match=r"cannot read .*: Is a directory"):
        download._sha256(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1" * 5000, "has a number that cannot be read"),
        ("[" * 100_000, "is nested too deep to be read"),
        ('{"a": 1', "is cut short"),
        ("{'a': 1}", "is in Python's notation"),
    ],
)
def test_json_that_cannot_be_read_is_a_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(BigqaError, match=f"the file {said}"):
        read_json(tmp_path / "a.json", "the file")


@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
def test_what_breaks_off_leaves_nothing(tmp_path: Path, atomic: Any) -> None:
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "out") as made:
        (made / "part" if made.is_dir() else made).write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
