"""The samples of comments and conversations, and what needs no model to score on them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from bigqa.errors import UsageError
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.run.generation import generated
from bigqa.sample import FOLDER
from bigqa.sample import make_texts as texts
from bigqa.tasks.lm.plain import frequency_scores
from bigqa.tasks.registry import kind_of

MADE = {
    "comments": ("train.tsv", "dev.tsv", "vocab.txt"),
    "chats": ("train.jsonl", "dev.jsonl", "tokenizer.json", "tokenizer_config.json"),
}


def test_the_script_makes_the_committed_bytes(tmp_path: Path) -> None:
    for folder, write in {"comments": texts.write_comments, "chats": texts.write_chats}.items():
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
        for name in MADE[folder]:
            assert (tmp_path / folder / name).read_bytes() == (FOLDER / folder / name).read_bytes(), name


def test_labels_follow_from_who_is_called_what() -> None:
    """Read off the text anew; and forms that the dev file has, training has not."""
    for split, rows in texts.comments().items():
        for text, label in rows:
            is_person = any(re.search(f"(^| ){one}(은|는|도|이|가|조차) ", text) for one in texts.PEOPLE)
            is_good = any(f" {stem}" in text for stem in texts.GOOD)
            assert is_good != any(f" {stem}" in text for stem in texts.BAD), text
            assert label == ("praise" if is_good else "attack" if is_person else "criticism"), text
        own = sum(text.endswith(texts.ENDINGS["dev"]) for text, _ in rows) / len(rows)
        assert own == 0 if split == "train" else 0.4 < own < 0.6


def test_nothing_of_dev_is_in_training() -> None:
    found = texts.comments()
    assert not {text for text, _ in found["dev"]} & {text for text, _ in found["train"]}
    chats = texts.chats()
    train = " ".join(word for row in chats["train"] for word in row)
    for asked, answer in chats["dev"]:
        assert (answer if answer[0].isdigit() else next(w for w in asked.split() if w.endswith("에서"))) not in train


def test_the_tokenizer_says_every_character_and_takes_it_back() -> None:
    tokenizer = load_tokenizer(resolve(str(FOLDER / "chats" / "config.json")))
    for row in texts.chats()["dev"]:
        for text in row:
            ids = tokenizer.backend_tokenizer.encode(text).ids
            assert len(ids) == len(text) and tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
    config = json.loads((FOLDER / "chats" / "config.json").read_text("utf-8"))
    assert config["vocab_size"] == len(tokenizer) and config["eos_token_id"] == tokenizer.eos_token_id
    vocabulary = (FOLDER / "comments" / "vocab.txt").read_text("utf-8").splitlines()
    assert json.loads((FOLDER / "comments" / "config.json").read_text("utf-8"))["vocab_size"] == len(vocabulary)


def test_plain_methods_know_little_of_comments() -> None:
    """The most frequent label is as frequent as that; whole words are unknown in half of the forms."""
    kind, folder = kind_of("classify"), FOLDER / "comments"
    found = kind.plain_scores(folder / "train.tsv", folder / "dev.tsv", None, kind.options({}))
    labels = [label for _, label in texts.comments()["dev"]]
    share = 100 * labels.count("praise") / len(labels)
    assert found["the most frequent label"]["accuracy"] == pytest.approx(share)
    assert share + 10 < found["a bag of words"]["accuracy"] < 80


def test_several_labels_at_once_have_plain_scores_too(tmp_path: Path) -> None:
    rows = [
        "text\tlabel",
        *(f"{'개 ' * (n % 2)}{'소 ' * (n % 3 == 0)}말\t{n % 2},{2 + (n % 3 == 0)}" for n in range(60)),
    ]
    file = tmp_path / "rows.tsv"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    kind = kind_of("classify")
    found = kind.plain_scores(file, file, None, kind.options({}))
    assert found["a bag of words"]["macro_f1"] == 100.0


def test_frequencies_are_those_of_the_answers() -> None:
    train = [{"input_ids": [9, 1, 1, 2], "answer": [0, 1, 1, 1]}]
    dev = [{"input_ids": [1, 2, 3], "answer": [0, 1, 1]}]
    loss = -(math.log(2 / 13) + math.log(1 / 13)) / 2  # 3 tokens seen, and each of 10 once more
    assert frequency_scores(train, dev, 10)["loss"] == pytest.approx(loss)


def test_an_answer_that_is_there_is_not_handed_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("bigqa.run.generation.complete", lambda answerer, prompt, most: asked.append(prompt) or "-")
    tokenizer = load_tokenizer(resolve(str(FOLDER / "chats" / "config.json")))
    answerer: Any = type("Answerer", (), {"tokenizer": tokenizer})
    [first, *_] = generated(answerer, FOLDER / "chats" / "dev.jsonl", 5)
    question = first["messages"][0]["content"]
    assert asked[0] == f"<user>{question}<end><assistant>" and first["completion"] == "-"
    assert len(first["messages"]) == 2


def test_a_task_without_a_sample_is_refused(tmp_path: Path) -> None:
    from bigqa.demo import run

    with pytest.raises(UsageError, match="there is no sample of --task score; choose one of qa, classify, lm"):
        run(tmp_path / "demo", "score")
