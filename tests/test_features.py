"""Features on disk: the rows of their windows, a cache that knows what it was made of, and memory that stays flat."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigqa.models.sources import load_tokenizer, resolve
from bigqa.sample import FOLDER
from bigqa.tasks import features
from bigqa.tasks.features import build_features, window_lengths
from bigqa.tasks.windows import Lengths

LENGTHS = Lengths(seq_len=96, doc_stride=24, max_query_length=32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve("tiny"))


def build(tokenizer: Any, folder: Path, **options: Any) -> Any:
    options = {"lengths": LENGTHS, "training": True, "path": FOLDER / "dev.json"} | options
    return build_features(tokenizer=tokenizer, cache_dir=folder, **options)


def test_batches_do_not_show_in_the_rows(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(tokenizer, tmp_path / "a").table.to_pylist()
    for name, value in {"BATCH_QUESTIONS": 7, "BATCH_CHARACTERS": 300, "BATCH_ROWS": 5}.items():
        monkeypatch.setattr(features, name, value)
    assert build(tokenizer, tmp_path / "b").table.to_pylist() == whole
    assert [row["question"] for row in whole] == sorted(row["question"] for row in whole)
    assert len({row["question"] for row in whole}) == 240


def test_offsets_and_targets_point_at_the_answer(tokenizer: Any, tmp_path: Path) -> None:
    questions = [
        (part["context"], qa["answers"][0]["text"])
        for article in json.loads((FOLDER / "dev.json").read_text(encoding="utf-8"))["data"]
        for part in article["paragraphs"]
        for qa in part["qas"]
    ]
    rows = build(tokenizer, tmp_path, training=False, with_targets=True)
    for row in rows:
        context, answer = questions[row["question"]]
        assert len(row["offset_start"]) == row["context_end"] - row["context_begin"]
        if row["end"]:
            first, last = row["start"] - row["context_begin"], row["end"] - row["context_begin"]
            assert context[row["offset_start"][first] : row["offset_end"][last]] == answer


def test_lengths_are_those_of_the_rows(tokenizer: Any, tmp_path: Path) -> None:
    windows = build(tokenizer, tmp_path)
    assert window_lengths(windows) == [len(row["input_ids"]) for row in windows.table.to_pylist()]


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": LENGTHS.model_copy(update={"seq_len": 100})},
        {"lengths": LENGTHS.model_copy(update={"doc_stride": 25})},
        {"lengths": LENGTHS.model_copy(update={"max_query_length": 31})},
        {"training": False},
        {"limit": 3},
        {"path": FOLDER / "train.json", "limit": 3},
    ],
)
def test_another_setting_is_another_file(tokenizer: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    build(tokenizer, tmp_path)
    build(tokenizer, tmp_path, **change)
    assert len(list(tmp_path.glob("*.arrow"))) == 2


def test_other_bytes_and_another_vocabulary_are_other_files(tokenizer: Any, tmp_path: Path) -> None:
    cache, copy, vocabulary = tmp_path / "cache", tmp_path / "dev.json", tmp_path / "vocabulary"
    build(tokenizer, cache)
    copy.write_text((FOLDER / "dev.json").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    build(tokenizer, cache, path=copy)
    vocabulary.mkdir()
    lines = (FOLDER / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (vocabulary / "vocab.txt").write_text("\n".join([*lines, "bigqa"]) + "\n", encoding="utf-8")
    shutil.copy(FOLDER / "tokenizer_config.json", vocabulary)
    build(load_tokenizer(resolve("tiny", tokenizer=str(vocabulary))), cache)
    assert len(list(cache.glob("*.arrow"))) == 3


def test_the_cache_is_used_and_a_cut_file_is_made_again(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(tokenizer, tmp_path).table.to_pylist()
    [file] = tmp_path.glob("*.arrow")
    made = file.stat().st_mtime_ns
    build(tokenizer, tmp_path)
    assert file.stat().st_mtime_ns == made
    file.write_bytes(file.read_bytes()[:-5000])
    assert build(tokenizer, tmp_path).table.to_pylist() == whole


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_a_byte_that_changed_is_seen(tokenizer: Any, tmp_path: Path, share: float) -> None:
    """Arrow reads it: another token was trained on, or a length was not what it had been."""
    whole = build(tokenizer, tmp_path).table.to_pylist()
    [file] = tmp_path.glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    file.write_bytes(content)
    assert build(tokenizer, tmp_path).table.to_pylist() == whole
    assert file.read_bytes() != content


def test_an_interrupted_file_leaves_nothing(tokenizer: Any, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tokenizer, tmp_path, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_the_number_of_questions(tokenizer: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build(tokenizer, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (240, 240)


MEASURE = """
import resource, sys
from pathlib import Path
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.tasks.features import build_features, window_lengths
from bigqa.tasks.windows import Lengths

def run(file, lengths):
    windows = build_features(file, tokenizer, lengths, training=True, cache_dir=Path(sys.argv[2]))
    for begin in range(0, len(windows), 512):
        windows[range(begin, min(begin + 512, len(windows)))]
    return len(window_lengths(windows))

tokenizer = load_tokenizer(resolve("tiny"))
small = Path(sys.argv[1])
run(small, Lengths(seq_len=256, doc_stride=64, max_query_length=48))  # the baseline: everything loaded and warm
before = peak_resident_bytes()
windows = run(Path(sys.argv[3]), Lengths(seq_len=256, doc_stride=64, max_query_length=48))
after = peak_resident_bytes()
print(windows, after - before)
"""


@pytest.mark.slow
def test_a_hundred_thousand_windows_stay_within_300_megabytes(tmp_path: Path) -> None:
    data = json.loads((FOLDER / "train.json").read_text(encoding="utf-8"))["data"]
    big = tmp_path / "big"
    big.mkdir()
    for copy in range(5):
        articles = []
        for article in data:
            [part] = article["paragraphs"]
            context = " ".join([part["context"]] * 9)
            qas = [qa | {"id": f"{copy}-{qa['id']}"} for qa in part["qas"]]
            articles.append({"title": article["title"], "paragraphs": [{"context": context, "qas": qas}]})
        (big / f"{copy}.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    command = [sys.executable, "-c", MEASURE, str(FOLDER / "dev.json"), str(tmp_path / "cache"), str(big)]
    windows, grown = map(int, subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split())
    assert windows >= 100_000
    assert grown <= 300e6
