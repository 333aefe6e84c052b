"""Data as people bring it: every container and form gives the same questions, and what is no data is named."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import struct
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import here

from bigqa.errors import BigqaError
from bigqa.tasks.documents import data_files
from bigqa.tasks.scoring import read_golds
from bigqa.tasks.squad import Answer, Question, iter_questions, read_questions

CONTEXT = "한강은 서울을 지나 서해로 흐른다. 길이는 494킬로미터이다."
ROWS: list[dict[str, Any]] = [
    {
        "id": f"q{number}",
        "title": "강",
        "context": CONTEXT,
        "question": "길이는?",
        "answers": {"text": ["494킬로미터"], "answer_start": [24]},
    }
    for number in range(3)
]
EXPECTED = [Question(f"q{number}", "길이는?", CONTEXT, (Answer("494킬로미터", 24),), "강") for number in range(3)]
QAS = [
    {"id": row["id"], "question": row["question"], "answers": [{"text": "494킬로미터", "answer_start": 24}]}
    for row in ROWS
]
PARAGRAPHS = {"version": "t", "data": [{"title": "강", "paragraphs": [{"context": CONTEXT, "qas": QAS}]}]}
AI_HUB = {
    "doc_id": "1",
    "doc_title": "강",
    "paragraphs": [
        {
            "context": CONTEXT,
            "qas": [
                {
                    "question_id": qa["id"],
                    "question": qa["question"],
                    "answers": qa["answers"][0],
                    "is_impossible": False,
                }
                for qa in QAS
            ],
        }
    ],
}
"""As its data for reading comprehension lie: one answer, in no list."""


def dumped(value: Any, **options: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, **options).encode()


def lines(rows: list[Any]) -> bytes:
    return b"\n".join(map(dumped, rows)) + b"\n"


def zipped(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)


def zip_of(*names: str) -> bytes:
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return content.getvalue()


def arrow(path: Path, rows: list[Any], writer: Callable[..., Any]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, writer(sink, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=2):
            stream.write_batch(batch)


def saved_set(folder: Path) -> Path:
    """Write what `datasets` writes: two files, told in an order that is not that of their names."""
    folder.mkdir(parents=True)
    arrow(folder / "b.arrow", ROWS[:2], pa.ipc.new_stream)
    arrow(folder / "a.arrow", ROWS[2:], pa.ipc.new_stream)
    state = {"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}], "_split": "train"}
    (folder / "state.json").write_bytes(dumped(state))
    (folder / "dataset_info.json").write_bytes(dumped({"features": {}}))
    return folder


PLAIN = {
    "paragraphs": dumped(PARAGRAPHS),
    "indented": b"\xef\xbb\xbf" + dumped(PARAGRAPHS, indent=2),
    "list of articles": dumped(PARAGRAPHS["data"]),
    "one article": dumped(PARAGRAPHS["data"][0]),
    "rows in data": dumped({"data": ROWS}),
    "list of rows": dumped(ROWS),
    "lines": lines(ROWS),
    "lines with gaps": b"\xef\xbb\xbf\n".removesuffix(b"\n") + lines(ROWS).replace(b"\n", b"\r\n\r\n"),
    "lines behind a gap": b"\n\n" + lines(ROWS),
    "lines of an old Mac": lines(ROWS).replace(b"\n", b"\r"),
    "paragraphs of an old Mac": dumped(PARAGRAPHS, indent=1).replace(b"\n", b"\r"),
    "lines with numbers of pandas": lines(
        [row | {"answers": {"text": ["494킬로미터"], "answer_start": [24.0]}, "is_impossible": 0.0} for row in ROWS]
    ),
    "columns of pandas": dumped({name: {str(at): row[name] for at, row in enumerate(ROWS)} for name in ROWS[0]}),
    "split by pandas": dumped(
        {"columns": list(ROWS[0]), "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]}
    ),
    "articles of AI Hub": dumped({"data": [AI_HUB]}),
    "lines of articles": lines(
        [PARAGRAPHS["data"][0] | {"paragraphs": [{"context": CONTEXT, "qas": [qa]}]} for qa in QAS]
    ),
    "answers as objects": lines([row | {"answers": qa["answers"]} for row, qa in zip(ROWS, QAS, strict=True)]),
    "gzip": gzip.compress(dumped(PARAGRAPHS)),
    "gzip of lines": gzip.compress(lines(ROWS)),
    "bzip2": bz2.compress(lines(ROWS)),
    "xz": lzma.compress(dumped(PARAGRAPHS)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_forms_of_text_are_told_by_their_content(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data.json").write_bytes(PLAIN[kind])
    assert read_questions(tmp_path / "data.json", need_answers=True) == EXPECTED


def made(kind: str, folder: Path) -> Path:
    """Write the questions in one of the forms that are no plain text; return what is named to read them."""
    file = folder / "data"
    match kind:
        case "parquet":
            pq.write_table(pa.Table.from_pylist([row | {"more": 1} for row in ROWS]), file, row_group_size=2)
        case "arrow stream":
            arrow(file, ROWS, pa.ipc.new_stream)
        case "arrow file":
            arrow(file, ROWS, pa.ipc.new_file)
        case "zip":
            zipped(file, a__jsonl=lines(ROWS[:2]), b__json__gz=gzip.compress(dumped(ROWS[2:])), readme__txt=b"no")
        case "parquet in a zip":
            pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows")
            zipped(file, rows__parquet=(folder / "rows").read_bytes())
        case "saved set":
            saved_set(file)
        case "glob":
            for number, row in enumerate(ROWS):
                (folder / f"part-{number}.jsonl").write_bytes(lines([row]))
            return folder / "part-*.jsonl"
        case "folder":
            file.mkdir()
            for number, row in enumerate(ROWS):
                pq.write_table(pa.Table.from_pylist([row]), file / f"train-0000{number}-of-00003.parquet")
    return file


@pytest.mark.parametrize(
    "kind",
    ["parquet", "arrow stream", "arrow file", "zip", "parquet in a zip", "saved set", "glob", "folder"],
)
def test_tables_archives_and_folders_are_read(tmp_path: Path, kind: str) -> None:
    assert read_questions(made(kind, tmp_path), need_answers=True) == EXPECTED


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:2]) + b"{ broken\n")
    stream = iter_questions(tmp_path / "a.jsonl", need_answers=True)
    assert [next(stream).id, next(stream).id] == ["q0", "q1"]
    with pytest.raises(BigqaError, match=r"a\.jsonl line 3"):
        next(stream)


@pytest.mark.parametrize("kind", [int, float])
def test_numbers_may_name_rows_but_not_questions_of_articles(tmp_path: Path, kind: Callable[[int], Any]) -> None:
    """The official scripts find no answer to a question that a number names."""
    (tmp_path / "a.jsonl").write_bytes(lines([row | {"id": kind(number)} for number, row in enumerate(ROWS)]))
    assert [one.id for one in iter_questions(tmp_path / "a.jsonl", need_answers=True)] == ["0", "1", "2"]
    (tmp_path / "a.json").write_bytes(dumped([{"paragraphs": [{"context": CONTEXT, "qas": [QAS[0] | {"id": 1}]}]}]))
    with pytest.raises(BigqaError, match='"id" is a number, not text'):
        read_questions(tmp_path / "a.json", need_answers=True)


def test_an_only_answer_that_is_merely_plausible_is_none(tmp_path: Path) -> None:
    [paragraph] = AI_HUB["paragraphs"]
    qas = [paragraph["qas"][0], paragraph["qas"][1] | {"is_impossible": 1}]
    (tmp_path / "a.json").write_bytes(dumped([AI_HUB | {"paragraphs": [paragraph | {"qas": qas}]}]))
    assert [len(one.answers) for one in iter_questions(tmp_path / "a.json", need_answers=True)] == [1, 0]
    assert read_golds(tmp_path / "a.json", "squad2") == {"q0": ["494킬로미터"], "q1": []}


def test_places_count_the_lines_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + lines(ROWS[:1]) + b"\r\n\n" + lines(ROWS[1:2]) + b"{\n")
    with pytest.raises(BigqaError, match=r"a\.jsonl line 6"):
        read_questions(tmp_path / "a.jsonl", need_answers=True)


def test_a_column_of_bytes_is_called_so(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROWS[0] | {"context": CONTEXT.encode()}]), tmp_path / "a.parquet")
    with pytest.raises(BigqaError, match='"context" is bytes, not text'):
        read_questions(tmp_path / "a.parquet", need_answers=True)


UNREADABLE = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n",
    "a CSV table": b"id,question,context\r\n1,a,b\r\n",
    "a web page": b"<!DOCTYPE html><html></html>",
    "a Python pickle": b"\x80\x04\x95\x10\x00",
    "packed by zstd": b"\x28\xb5\x2f\xfd\x04\x00",
    "a PDF document": b"%PDF-1.7\n",
    "Office or HWP document": bytes.fromhex("d0cf11e0a1b11ae1"),
    "a RAR archive": b"Rar!\x1a\x07\x01\x00",
    "a NumPy array": b"\x93NUMPY\x01\x00v\x00",
    "in Python's notation": str(PARAGRAPHS).encode(),
    "it is in CP949": dumped(PARAGRAPHS).decode().encode("cp949"),
    "it is in another encoding": '{"data": "été"}'.encode("latin-1"),
    "it is binary": b"\x93\x00\x01",
    "it is binary, and": b"\x93\0\xfe\0\xfd\0\xfc\0",
    "an Office document": zip_of("xl/workbook.xml", "[Content_Types].xml"),
    "a file of PyTorch": zip_of("archive/data.pkl"),
    "UTF-16 text": '{"data": []}'.encode("utf-16"),
    "UTF-16 text; ": '{"data": []}'.encode("utf-16-le"),
    "UTF-16 text; convert": '{"data": []}'.encode("utf-16-be"),
    "UTF-32 text": '{"data": []}'.encode("utf-32"),
    "nothing but zero bytes": b"\0" * 4096,
    "a picture": b"\x89PNG\r\n\x1a\n",
    "an XML file": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "packed by compress": b"\x1f\x9d\x90a",
    "a zip that holds another, inner.zip": zip_of("more/inner.zip"),
    "a document": zip_of("mimetype", "Contents/section0.xml"),
    "more than one JSON value: the next is at .*, line 2 column 1": dumped(ROWS[:1]) + b"\n" + dumped(ROWS[1:]),
    "is not JSON": dumped(PARAGRAPHS)[:-1] + b",}",
    '"context" is an object': dumped({"context": {"0": CONTEXT}, "question": {"1": "?"}}),
    "it has text, label": dumped({"text": "a", "label": 1}),
    "a tar archive": b"data.json".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"),
    "cannot be unpacked": gzip.compress(dumped(PARAGRAPHS))[:-20],
    "a broken Parquet file": b"PAR1" + b"\0" * 20,
    "a broken Arrow file": b"ARROW1\0\0" + b"\0" * 20,
    "is cut short": dumped(PARAGRAPHS)[:-9],
}


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(BigqaError, match=r"is a pipe or a device, .*pipe\.json; save it to a file"):
        read_questions(tmp_path / "pipe.json", need_answers=True)


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_data_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(UNREADABLE[name])
    with pytest.raises(BigqaError, match=name) as caught:
        read_questions(file, need_answers=True)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["a"], "answer_start": []}}, "line 1 has 1 answers and 0 places"),
        ({"answers": {"text": "a", "answer_start": [1]}}, '"text" is text, not a list'),
        ({"answers": {"text": ["길이"], "answer_start": ["20"]}}, '"answer_start" is text'),
        ({"context": None}, 'line 1 has no "context"'),
        ({"question": 7}, '"question" is a number'),
        ({"answers": None, "answer": "494킬로미터"}, '"answer" is text, not an object'),
        ({"answers": {"text": ["길이는  "], "answer_start": [19]}}, "it is there without the blanks around it"),
        ({"answers": {"text": ["길이는\u00a0494"], "answer_start": [20]}}, "bring both to NFKC"),
        ({"is_impossible": "no"}, '"is_impossible" is text, not true or false'),
        ({"context": "\ud800" + CONTEXT}, "half a surrogate pair"),
        ({"context": CONTEXT.replace("길", "\u1100\u1175\u11af")}, "it is at 26"),
        (
            {"answers": {"text": [unicodedata.normalize("NFD", "길이")], "answer_start": [20]}},
            "the answer in NFD and the context in NFC",
        ),
    ],
)
def test_faults_of_a_row_are_named_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (ROWS[0] | change, ROWS[1])), encoding="utf-8")
    with pytest.raises(BigqaError) as caught:
        read_questions(file, need_answers=True)
    assert message in str(caught.value) and "rows.jsonl line 1" in str(caught.value)


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    saved_set(tmp_path / "sets" / "train")
    saved_set(tmp_path / "sets" / "validation")
    (tmp_path / "sets" / "dataset_dict.json").write_bytes(dumped({"splits": ["train", "validation"]}))
    with pytest.raises(
        BigqaError, match=rf"several splits.*{tmp_path / 'sets' / 'train'}, {tmp_path / 'sets' / 'val'}"
    ):
        data_files(tmp_path / "sets", "data file")
    for name in ("train-0.parquet", "validation-0.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(BigqaError, match=r"holds the splits train, validation.*/train\*'"):
        data_files(tmp_path, "data file")
    assert data_files(tmp_path / "train*", "data file") == [tmp_path / "train-0.parquet"]


def test_a_run_is_refused_before_it_begins(tmp_path: Path) -> None:
    done = here("train", "--model", "tiny", "--train-file", tmp_path / "no-*.json", "--out", tmp_path / "run")
    assert done.returncode == 1 and "no file is named like" in done.stderr and not (tmp_path / "run").exists()


def test_the_public_cases(shared: Path) -> None:
    """Each of these was told to be not UTF-8, or to have extra data."""
    folder = shared / "cases" / "public" / "19-containers-of-json"
    for name in ("plain.json.gz", "lines.jsonl", "hfexport.json", "list.json"):
        done = here("data", "inspect", folder / name, "tiny", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["counts"]["questions"] == (3 if name == "lines.jsonl" else 1)
    done = here("data", "inspect", folder / "lfs.json", "tiny")
    assert done.returncode == 1 and "a Git LFS pointer" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("writer", [pa.ipc.new_stream, pa.ipc.new_file])
def test_a_damaged_offset_is_a_line_and_not_the_end_of_the_process(writer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.arrow"
    arrow(file, ROWS[:2], writer)
    whole = file.read_bytes()
    offsets = struct.pack("<3i", 0, *itertools.accumulate(len(row["id"].encode()) for row in ROWS[:2]))
    at = whole.index(offsets) + 8
    file.write_bytes(whole[:at] + struct.pack("<i", 2**30) + whole[at + 4 :])
    with pytest.raises(BigqaError, match="broken Arrow file"):
        read_questions(file, need_answers=True)


def test_a_long_id_is_repeated_in_short(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_bytes(dumped([ROWS[0] | {"id": "x" * 3000, "question": None}]))
    with pytest.raises(BigqaError, match="question") as raised:
        read_questions(file, need_answers=True)
    assert len(str(raised.value)) < 1000
