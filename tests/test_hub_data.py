"""Data sets that are named, not lying here: those of the hub by their ids, and what is no name of one."""

from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigqa.errors import BigqaError
from bigqa.tasks.documents import data_files
from bigqa.tasks.squad import Answer, Question, read_questions

CONTEXT = "한강은 서울을 지나 서해로 흐른다."
ROW = {
    "id": "q",
    "title": "강",
    "context": CONTEXT,
    "question": "어디를 지나나?",
    "answers": {"text": ["서울"], "answer_start": [4]},
}
EXPECTED = [Question("q", "어디를 지나나?", CONTEXT, (Answer("서울", 4),), "강")]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds one data set, as `huggingface_hub` lays it out."""
    cache = tmp_path / "hub"
    revision = cache / "datasets--owner--rivers"
    (revision / "refs").mkdir(parents=True)
    (revision / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return revision / "snapshots" / ("a" * 40)


def test_a_data_set_of_the_hub_is_its_id(hub: Path) -> None:
    (hub / "mrc").mkdir(parents=True)
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist([ROW]), hub / "mrc" / f"{split}-00000-of-00001.parquet")
    assert read_questions(Path("owner/rivers:train"), need_answers=True) == EXPECTED
    assert read_questions(Path("owner/rivers/mrc:validation"), need_answers=True) == EXPECTED
    with pytest.raises(BigqaError, match="more than one split: train, validation; name one: owner/rivers:train"):
        data_files(Path("owner/rivers"), "data file")
    with pytest.raises(BigqaError, match="has no split test; choose one of train, validation"):
        data_files(Path("owner/rivers:test"), "data file")
    with pytest.raises(BigqaError, match="owner/lakes is no path here, and no data set of the hub"):
        data_files(Path("owner/lakes"), "data file")


@pytest.mark.parametrize("address", ["https://example.org/train.json", "s3://bucket/train.json"])
def test_an_address_is_no_file(address: str) -> None:
    with pytest.raises(BigqaError, match="is an address, not a file"):
        read_questions(Path(address), need_answers=True)


def test_a_slip_of_the_pen_asks_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    for name in ("data/train.json", "data/train.json.gz", "train", "a/b/c/d", "tests/trian"):
        with pytest.raises(BigqaError, match="data file not found"):
            data_files(Path(name), "data file")
