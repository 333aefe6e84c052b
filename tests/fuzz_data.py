"""Data and answers that are spoiled, and what reads them; see `fuzzing`."""

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import Kind, Spoiling, damaged, damages, dumped, spoiled, spoilings

from bigqa.tasks.scoring import METRICS, evaluate_files, metric_of
from bigqa.tasks.squad import read_questions

CONTEXT = "한강은 서울을 지나 서해로 흐른다. 길이는 494킬로미터이다."
ANSWER = {"text": "494킬로미터", "answer_start": 24}
QA = {"id": "q1", "question": "길이는?", "answers": [ANSWER], "is_impossible": False}
ROW = {
    "id": "q1",
    "title": "강",
    "context": CONTEXT,
    "question": "길이는?",
    "answers": {"text": ["494킬로미터"], "answer_start": [24]},
}
FORMS: list[Any] = [
    {"version": "1", "data": [{"title": "강", "paragraphs": [{"context": CONTEXT, "qas": [QA, QA | {"id": "q2"}]}]}]},
    {
        "version": "2",
        "data": [{"title": "강", "context": CONTEXT, "qas": [{"id": "q1", "question": "?", "answer": ANSWER}]}],
    },
    [ROW, ROW | {"id": "q2", "answers": {"text": [], "answer_start": []}}],
    {
        "data": [
            {
                "paragraphs": [
                    {"context": CONTEXT, "qas": [QA | {"is_impossible": True, "answers": []}, QA | {"guid": "g"}]}
                ]
            }
        ]
    },
]
Read = Callable[[Any, list[Spoiling], Path], Callable[[], object]]
"""From a kind's bases, a choice among them with its spoilings, and an empty folder to what reads it."""


def _lines(rows: list[Any]) -> bytes:
    return b"\n".join(map(dumped, rows)) + b"\n"


def _read_all(file: Path, answers: Path) -> None:
    """Read data in every way that commands do; each may refuse."""
    refusals = []
    for read in (
        lambda: read_questions(file, need_answers=True),
        lambda: read_questions(file, need_answers=False),
        lambda: metric_of(file),
        *(lambda metric=metric: evaluate_files(file, answers, metric) for metric in METRICS),
    ):
        try:
            read()
        except Exception as error:
            if type(error).__module__ != "bigqa.errors":
                raise
            refusals.append(error)
    if len(refusals) > len(METRICS) - 1:  # no data fit every metric
        raise refusals[0]


def _of_data(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    form = FORMS[which % len(FORMS)]
    rows = spoiled(form if isinstance(form, list) else [form], drawn) if which % 3 == 0 else None
    content = _lines(rows) if isinstance(rows, list) else dumped(spoiled(form, drawn))
    (folder / "data.json").write_bytes(content)
    (folder / "p.json").write_bytes(dumped({"q1": "494", "q2": ""}))
    return lambda: _read_all(folder / "data.json", folder / "p.json")


def _arrow(open_: Callable[..., Any]) -> bytes:
    table, sink = pa.Table.from_pylist([ROW]), io.BytesIO()
    with open_(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _contents() -> list[bytes]:
    plain, lines, parquet, zipped = dumped(FORMS[0]), _lines([ROW, ROW | {"id": "q2"}]), io.BytesIO(), io.BytesIO()
    pq.write_table(pa.Table.from_pylist([ROW]), parquet)
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", plain)
    packed = gzip.compress(lines)
    return [
        plain,
        lines,
        packed,
        zipped.getvalue(),
        parquet.getvalue(),
        _arrow(pa.ipc.new_stream),
        _arrow(pa.ipc.new_file),
    ]


CONTENTS = _contents()


def _of_bytes(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    (folder / "data").write_bytes(damaged(CONTENTS[which % len(CONTENTS)], drawn))
    (folder / "p.json").write_bytes(b"{}")
    return lambda: _read_all(folder / "data", folder / "p.json")


def _of_answers(which: int, drawn: list[Spoiling], folder: Path) -> Callable[[], object]:
    form, metric = ((0, "korquad1"), (1, "korquad2"), (3, "squad2"), (3, "klue"))[which % 4]
    (folder / "data.json").write_bytes(dumped(FORMS[form]))
    answers = {"q1": "494킬로미터", "g": "", "q2": "<b>494</b>"}
    content = dumped(answers)
    (folder / "p.json").write_bytes(damaged(content, drawn) if which % 5 == 0 else dumped(spoiled(answers, drawn)))
    return lambda: evaluate_files(folder / "data.json", folder / "p.json", metric)


KINDS: dict[str, Kind] = {
    "data": (_of_data, spoilings()),
    "bytes": (_of_bytes, damages()),
    "answers": (_of_answers, spoilings()),
}
