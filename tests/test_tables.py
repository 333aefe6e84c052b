"""Tables of texts and labels: every form the same rows, and every fault one line with its place."""

import bz2
import csv
import gzip
import itertools
import json
import lzma
import os
import struct
import threading
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import write_jsonl

from bigqa.errors import BigqaError
from bigqa.run.job import job_of
from bigqa.settings import make_settings
from bigqa.tasks.labelled import read_examples
from bigqa.tasks.tables import read_table

ROWS = [{"text": '그는 "참" 좋다', "label": "praise"}, {"text": "나쁘다, 아주", "label": "blame"}]


def examples(path: Path, **asked: Any) -> list[tuple[Any, tuple[str, ...]]]:
    wanted: dict[str, Any] = {"text": None, "pair": None, "label": None} | asked
    return [(one.text, one.labels) for one in read_examples(path, **wanted)]


def written(folder: Path, form: str) -> Path:
    path = folder / f"data{form}"
    if form == ".tsv":
        path.write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS), "utf-8")
    elif form == ".csv":
        path.write_text('label,text\npraise,"그는 ""참"" 좋다"\nblame,"나쁘다, 아주"\n', "utf-8")
    elif form == ".jsonl.gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in ROWS)
    elif form == ".json":
        path.write_text(json.dumps(ROWS), "utf-8")
    elif form == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:  # a folder that `datasets` saved: classes are numbers, named in the file's own words
        path.mkdir()
        feature = {"names": ["blame", "praise"], "_type": "ClassLabel"}
        told = json.dumps({"info": {"features": {"label": feature, "text": {"dtype": "string", "_type": "Value"}}}})
        schema = pa.schema({"text": pa.string(), "label": pa.int64()}, metadata={"huggingface": told})
        table = pa.table({"text": [row["text"] for row in ROWS], "label": [1, 0]}, schema=schema)
        with pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
            out.write_table(table)
        (path / "state.json").write_text("{}")
    return path


@pytest.mark.parametrize("form", [".tsv", ".csv", ".jsonl.gz", ".json", ".parquet", ""])
def test_every_form_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    assert examples(written(tmp_path, form)) == [(row["text"], (row["label"],)) for row in ROWS]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_spreadsheet_parts_columns_as_it_likes(separator: str, tmp_path: Path) -> None:
    lines = [["text", "label"], *([row["text"], row["label"]] for row in ROWS)]
    with (tmp_path / "data.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(lines)
    assert examples(tmp_path / "data.csv") == [(row["text"], (row["label"],)) for row in ROWS]


PACK = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("form", [".tsv", ".csv", ".json", ".parquet"])
def test_what_is_packed_gives_the_same_rows(form: str, packing: str, tmp_path: Path) -> None:
    plain = written(tmp_path, form)
    packed = plain.with_name(plain.name + packing)
    with PACK[packing](packed, "wb") as file:
        file.write(plain.read_bytes())
    assert examples(packed) == [(row["text"], (row["label"],)) for row in ROWS]


def test_a_zip_a_folder_and_a_glob_are_read_as_questions_are(tmp_path: Path) -> None:
    """One reader: what stands for files of questions stands for files of texts."""
    wanted = [(row["text"], (row["label"],)) for row in ROWS]
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(written(tmp_path, ".json"), "inner/data.json")
    assert examples(tmp_path / "data.zip") == wanted
    with zipfile.ZipFile(tmp_path / "tables.zip", "w") as archive:
        for form in (".tsv", ".csv"):
            archive.write(written(tmp_path, form), f"inner/data{form}")
    assert examples(tmp_path / "tables.zip") == 2 * wanted
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("a", "b"):
        written(folder, ".tsv").rename(folder / f"{name}.tsv")
    assert examples(folder) == examples(folder / "*.tsv") == 2 * wanted
    for name in ("train", "dev"):
        written(folder, ".tsv").rename(folder / f"{name}.tsv")
    with pytest.raises(BigqaError, match="holds the splits train, validation"):
        examples(folder)
    with pytest.raises(BigqaError, match="no file is named like"):
        examples(tmp_path / "none*.tsv")


def test_what_flows_is_read_once(tmp_path: Path) -> None:
    pipe, content = tmp_path / "pipe.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(content, encoding="utf-8"), daemon=True)
    writer.start()
    assert examples(pipe) == [(row["text"], (row["label"],)) for row in ROWS]
    writer.join()


def test_labels_are_learned_of_a_glob(tmp_path: Path) -> None:
    """A run's facts are those of all files that its training data stands for."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "가", "label": "x"}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "나", "label": "y"}])
    settings = make_settings(model="tiny", task="classify", train_file=tmp_path / "*.jsonl", out=tmp_path / "run")
    assert job_of(settings).facts["id2label"] == {0: "x", 1: "y"}


def test_layouts_are_read_as_they_are_published(tmp_path: Path) -> None:
    """K-MHaS: texts in quotes, labels as "2,4". UnSmile: a column of each label, and one that is none."""
    kmhas, unsmile = tmp_path / "kmhas_train.txt", tmp_path / "unsmile_train_v1.0.tsv"
    kmhas.write_text('document\tlabel\n"그는 ""참"" 좋다"\t8\n"도시"는 "역사"\t2,4\n', "utf-8")
    assert examples(kmhas) == [('그는 "참" 좋다', ("8",)), ('"도시"는 "역사"', ("2", "4"))]
    unsmile.write_text("문장\t남성\t연령\tclean\t개인지칭\n가\t0\t0\t1\t0\n나\t1\t1\t0\t1\n", "utf-8")
    assert examples(unsmile) == [("가", ("clean",)), ("나", ("남성", "연령"))]


def test_columns_are_found_or_named_and_a_second_text_may_lie_beside(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("comments\tcontain_gender_bias\tbias\thate\n좋다\tFalse\tnone\toffensive\n", "utf-8")
    (tmp_path / "train.news_title.txt").write_text("제목\n", "utf-8")
    assert examples(path) == [("좋다", ("offensive",))]
    assert examples(path, label="contain_gender_bias") == [("좋다", ("False",))]
    assert examples(path, pair="news_title") == [(("좋다", "제목"), ("offensive",))]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"premise": "가", "hypothesis": "나", "gold_label": 1}])
    assert examples(pairs) == [(("가", "나"), ("1",))]


FAULTS = {
    "has no column 'word'; it has 'text', 'label'": ([{"text": "가", "label": "x"}], {"text": "word"}),
    "line 2: 'text' is empty": ([{"text": "가", "label": "x"}, {"text": " ", "label": "x"}], {}),
    "'text' holds no text": ([{"text": None, "label": "x"}], {}),
    "the label 'label' is NaN": ([{"text": "가", "label": float("nan")}], {}),
    "0.5, a number: --task score": ([{"text": "가", "label": 0.5}], {}),
    "'label' holds no label": ([{"text": "가", "label": ""}], {}),
    "say --label NAME": ([{"text": "가", "kind": "x"}], {}),
    "say --text NAME": ([{"body": "가", "label": "x"}], {}),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_is_one_line_with_its_place(words: str, tmp_path: Path) -> None:
    values, asked = FAULTS[words]
    path = write_jsonl(tmp_path / "data.jsonl", values)
    with pytest.raises(BigqaError) as caught:
        examples(path, **asked)
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


BROKEN = {
    "a.tsv": (b"text\tlabel\none\ttwo\tthree\n", "row 2 has 3 columns, and the first line 2"),
    "b.jsonl": (b'{"text": "a"\n', "is cut short"),
    "c.jsonl": (b"[1]\n", "row 1 is a number, no JSON object"),
    "d.csv": (b"text,label\n", "holds no row"),
    "e.tsv": ("글\t표\n".encode("cp949"), "it is in CP949"),
    "f.parquet": (b"PAR1", "is a broken Parquet file"),
    "g.jsonl.gz": (b"\x1f\x8b\x08\x00", "cannot be unpacked"),
    "h.doc": (b"", "has none of the endings"),
    "j.csv": ("text,label\n".encode("utf-16"), "is UTF-16 text"),
    "k.csv": (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "is a Git LFS pointer"),
    "l.tsv": (b"<!DOCTYPE html>\n<html>", "is a web page"),
    "m.csv": (b"PK\x03\x04" + b"\0" * 26 + b"[Content_Types].xml", "is an Office document"),
    "i.tsv": (b"a\ta\n1\t2\n", "two columns have one name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BigqaError) as caught:
        list(read_table(tmp_path / name))
    assert words in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_published_data_is_read_whole(shared: Path) -> None:
    """Rows as its manifest counts them."""
    data = shared / "data"
    comments = examples(data / "hate_speech" / "dev.tsv", pair="news_title")
    assert len(comments) == 471 and {label for _, (label,) in comments} == {"none", "offensive", "hate"}
    assert all(isinstance(text, tuple) for text, _ in comments)
    inference = examples(data / "kornli" / "xnli.dev.ko.tsv")
    assert len(inference) == 2490 and {label for _, (label,) in inference} == {"neutral", "contradiction", "entailment"}


def test_a_damaged_offset_is_a_line_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    file = written(tmp_path, "") / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    offsets = struct.pack("<3i", 0, *itertools.accumulate(len(row["text"].encode()) for row in ROWS))
    at = whole.index(offsets) + 8
    file.write_bytes(whole[:at] + struct.pack("<i", 2**30) + whole[at + 4 :])
    with pytest.raises(BigqaError, match="broken Arrow file"):
        examples(file)
