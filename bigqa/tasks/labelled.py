"""Labelled texts of a file, each checked. In: a table, the columns asked for. Out: a stream of `Example`.

Columns are those asked for, or those that have a usual name. A label is text; numbers and truth values are written out.
Several labels at once stand in a list, as "2,4" (K-MHaS), or as one column of 0 and 1 for each label (UnSmile).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.files import read_text
from bigqa.language import tr
from bigqa.tasks.sequences import Text
from bigqa.tasks.tables import Placed, Row, column_of, read_table, text_of

TEXT_NAMES = (
    "text", "sentence", "sentence1", "premise", "question1", "comments", "comment", "document", "review", "content",
    "문장", "질문",
)  # fmt: skip
PAIR_NAMES = ("text_pair", "text2", "sentence2", "hypothesis", "question2")
LABEL_NAMES = ("label", "labels", "gold_label", "hate", "target", "class", "category", "레이블", "라벨")
NO_LABELS = ("개인지칭",)
"""Columns of 0 and 1 that UnSmile has beside its labels."""
SEVERAL = re.compile(r"\d+(,\s*\d+)+")


@dataclass(frozen=True, slots=True)
class Example:
    """A text or a pair, and its labels: none where they are not asked for."""

    text: Text
    labels: tuple[str, ...]
    several: bool
    """Whether its label may be one of several at once."""
    where: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in a table what stands."""

    text: str
    pair: str | None
    labels: tuple[str, ...]
    """One column, or one of 0 and 1 for each label."""
    one_each: bool = False
    pair_file: Path | None = None


def read_examples(
    path: Path, *, text: str | None, pair: str | None, label: str | None, need_labels: bool = True
) -> Iterator[Example]:
    """Yield a file's examples. Raises: BigqaError in one line, with the row."""
    rows = read_table(path)
    first, where = next(rows)
    columns = _columns(first, path, where, text, pair, label, need_labels)
    for row, place, second in _with_pairs(first, where, rows, columns):
        text_found = text_of(row, columns.text, place)
        if second is None and columns.pair is not None:
            second = text_of(row, columns.pair, place)
        labels, several = _labels(row, columns, place) if need_labels else ((), False)
        yield Example(text_found if second is None else (text_found, second), labels, several, place)


def _with_pairs(
    first: Row, where: str, rows: Iterator[Placed], columns: Columns
) -> Iterator[tuple[Row, str, str | None]]:
    """Yield rows with the second text of each where that stands in a file of its own."""
    if columns.pair_file is None:
        yield first, where, None
        yield from ((row, place, None) for row, place in rows)
        return
    lines = read_text(columns.pair_file, tr("file of second texts")).rstrip("\n").split("\n")
    for number, (placed, line) in enumerate(zip_longest([(first, where), *rows], lines), 1):
        if placed is None or line is None:
            short = tr("the data") if placed is None else columns.pair_file
            raise BigqaError(
                tr(
                    "{pair_file} has not one line for each row of the data: {short} ends at {number}",
                    pair_file=columns.pair_file,
                    short=short,
                    number=number,
                )
            )
        yield *placed, line.strip()


def _columns(
    row: Row, path: Path, where: str, text: str | None, pair: str | None, label: str | None, need_labels: bool
) -> Columns:
    text_column = column_of(row, text, TEXT_NAMES, "text", where)
    pair_file = None
    if pair is None:
        lower = {name.strip().lower(): name for name in row}
        pair = next((lower[name] for name in PAIR_NAMES if name in lower and text is None), None)
    elif pair not in row:
        pair_file = path.with_name(f"{path.stem}.{pair}.txt")
        if not pair_file.is_file():
            column_of(row, pair, (), "text-pair", where)
    labels = _label_columns(row, {text_column, pair}, label, where) if need_labels else ((), False)
    return Columns(text_column, None if pair_file else pair, *labels, pair_file)


def _label_columns(row: Row, taken: set[str | None], asked: str | None, where: str) -> tuple[tuple[str, ...], bool]:
    if asked is not None and asked not in row and "," in asked:
        names = tuple(name.strip() for name in asked.split(","))
        return tuple(column_of(row, name, (), "label", where) for name in names), True
    if asked is None and not {name.strip().lower() for name in row} & set(LABEL_NAMES):
        switches = tuple(n for n, value in row.items() if n not in taken and n not in NO_LABELS and _is_switch(value))
        if len(switches) > 1:
            return switches, True
    return (column_of(row, asked, LABEL_NAMES, "label", where),), False


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or str(value) in ("0", "1")


def _labels(row: Row, columns: Columns, where: str) -> tuple[tuple[str, ...], bool]:
    if columns.one_each:
        for name in columns.labels:
            if not _is_switch(row[name]):
                raise BigqaError(
                    tr(
                        "{where}: {name!r} is {value!r}; a column of each label holds 0 or 1",
                        where=where,
                        name=name,
                        value=row[name],
                    )
                )
        return tuple(name for name in columns.labels if str(row[name]) in ("1", "True")), True
    [column] = columns.labels
    value = row.get(column)
    if isinstance(value, list):
        return tuple(_label(one, column, where) for one in value), True
    label = _label(value, column, where)
    if SEVERAL.fullmatch(label):
        return tuple(re.split(r",\s*", label)), True
    return (label,), False


def _label(value: Any, column: str, where: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float):
        what = "NaN" if value != value else tr("{value}, a number: --task score learns those", value=value)
        raise BigqaError(tr("{where}: the label {column!r} is {what}", where=where, column=column, what=what))
    if value is None or not str(value).strip():
        raise BigqaError(
            tr("{where}: {column!r} holds no label; fill it in, or leave the row out", where=where, column=column)
        )
    if not isinstance(value, str | int):
        raise BigqaError(
            tr(
                "{where}: the label {column!r} is {kind}, not a label",
                where=where,
                column=column,
                kind=type(value).__name__,
            )
        )
    return str(value).strip()
