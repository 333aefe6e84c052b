"""The embedded sample: the same bytes on every run, true offsets, and nothing of dev in train."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigqa.models.sources import load_tokenizer, resolve
from bigqa.sample import FOLDER
from bigqa.sample.make_sample import particle
from bigqa.tasks.inspection import inspect_file
from bigqa.tasks.windows import Lengths


def paragraphs(split: str) -> list[dict[str, Any]]:
    data = json.loads((FOLDER / f"{split}.json").read_text(encoding="utf-8"))["data"]
    return [paragraph for article in data for paragraph in article["paragraphs"]]


def answers(split: str) -> set[str]:
    return {qa["answers"][0]["text"] for paragraph in paragraphs(split) for qa in paragraph["qas"]}


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_the_script_makes_the_committed_bytes(tmp_path: Path, hash_seed: str) -> None:
    command = [sys.executable, "-m", "bigqa.sample.make_sample", "--out", str(tmp_path)]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": hash_seed}, check=True)
    for name in ("train.json", "dev.json", "vocab.txt"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_answers_stand_where_they_say() -> None:
    for split in ("train", "dev"):
        for paragraph in paragraphs(split):
            for qa in paragraph["qas"]:
                answer = qa["answers"][0]
                assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])
                assert paragraph["context"].count(answer["text"]) == 1


def test_names_and_values_of_dev_never_occur_in_training() -> None:
    text = "\n".join(p["context"] + "".join(qa["question"] for qa in p["qas"]) for p in paragraphs("train"))
    assert not [answer for answer in answers("dev") if answer in text]


def test_particles_follow_the_last_syllable() -> None:
    assert [word + particle(word, "이", "가") for word in ("김산", "이나")] == ["김산이", "이나가"]


def test_the_vocabulary_can_say_every_answer() -> None:
    lengths = Lengths(seq_len=256, doc_stride=64, max_query_length=48)
    found = inspect_file(FOLDER / "dev.json", load_tokenizer(resolve("tiny")), lengths)
    assert found["seq_256"]["ceiling_em"] == 100.0


def test_it_stays_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 1.5e6
