"""Tables of texts and labels, a row at a time. In: TSV, CSV, or what `containers` reads: JSON, Parquet and others.

A file, packed or not; a folder, a glob, a folder that `datasets` saved, a data set of the hub. Out: rows by column and
the place of each, or one line that says what is wrong.
"""

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import put, tr
from bigqa.tasks.containers import DATA_SUFFIXES, PACKED_SUFFIXES, lines, texts_in_zip, values
from bigqa.tasks.documents import SEPARATED_SUFFIXES, data_files, name_of

DATA = tr("data file")
Row = dict[str, Any]
Placed = tuple[Row, str]
"""A row, and where it stands."""
SEPARATORS = dict(zip(SEPARATED_SUFFIXES, "\t,", strict=True)) | {".txt": "\t"}
SUFFIXES = (*SEPARATORS, *DATA_SUFFIXES, ".zip")
csv.field_size_limit(2**31 - 1)  # texts are as long as they are


def read_table(path: Path) -> Iterator[Placed]:
    """Yield a table's rows, one in memory at a time. Raises: BigqaError."""
    for file in table_files(path):
        count = 0
        for row in _rows_of(file):
            count += 1
            yield row
        if not count:
            raise BigqaError(tr("{data} holds no row: {file}", data=DATA, file=file))


def table_files(path: Path) -> list[Path]:
    """Return the files of a table: the path itself, or what a folder, glob or id stands for. Raises: BigqaError."""
    return [path] if path.is_fifo() else data_files(path, DATA)  # what flows may be asked of a model, once


def _rows_of(file: Path) -> Iterator[Placed]:
    suffix = _suffix(file)
    if suffix not in SUFFIXES:
        raise BigqaError(
            tr(
                "{data} has none of the endings {suffixes}: {file}; name its form so",
                data=DATA,
                suffixes=", ".join(SUFFIXES),
                file=file,
            )
        )
    if suffix in SEPARATORS:
        yield from _separated(lines(file, DATA), SEPARATORS[suffix], file)
        return
    texts = texts_in_zip(file, DATA, SEPARATED_SUFFIXES) if suffix == ".zip" else iter(())
    if (first := next(texts, None)) is not None:
        for member, text in chain([first], texts):
            yield from _separated(text, SEPARATORS[_suffix(Path(member))], file / member)
        return
    for value, where in values(file, DATA, columns=None):
        whole = where == put(
            "{data} {file}", data=DATA, file=file
        )  # one value that is all there is: its rows, or its only row
        for number, row in enumerate(value if isinstance(value, list) else [value], 1):
            place = (
                tr("{where} row {number}", where=where, number=number) if whole or isinstance(value, list) else where
            )
            if not isinstance(row, dict):
                raise BigqaError(
                    tr(
                        "{place} is {found}, no JSON object; each should be {{column: value}}",
                        place=place,
                        found=name_of(row),
                    )
                )
            yield row, place


def _suffix(path: Path) -> str:
    """Return a name's ending, below that of a packing."""
    return (path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES[1:] else path).suffix.lower()


def _separated(text: Iterator[str], separator: str, file: Path) -> Iterator[Placed]:
    """Yield rows of a table with a header. Tabs part columns whatever is quoted; commas do not within quotes."""
    if separator == "\t":
        rows: Iterator[list[str]] = ([_unquoted(one) for one in line.rstrip("\r\n").split("\t")] for line in text)
    else:
        first = next(text, "")
        # Spreadsheets write ";" where a comma is the decimal sign, and tabs where they are told to write Unicode.
        sign = next((one for one in ",;\t|" if one in first), ",")
        rows = csv.reader(chain([first] if first else [], text), delimiter=sign)
    names = next(rows, [])
    if len(set(names)) != len(names):
        raise BigqaError(
            tr("{data} {file}: two columns have one name in its first line; rename one", data=DATA, file=file)
        )
    for number, found in enumerate(rows, 2):
        if not any(found):
            continue
        where = tr("{data} {file} row {number}", data=DATA, file=file, number=number)
        if len(found) != len(names):
            raise BigqaError(
                tr(
                    "{where} has {count} columns, and the first line {first}: is one not escaped?",
                    where=where,
                    count=len(found),
                    first=len(names),
                )
            )
        yield dict(zip(names, found, strict=True)), where


def _unquoted(text: str) -> str:
    """Take away the quotes around a column that a spreadsheet put there; others are the text's own."""
    inner = text[1:-1]
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else text


def column_of(row: Row, asked: str | None, usual: Sequence[str], option: str, where: str) -> str:
    """Return the column that was asked for, or that has a usual name. Raises: BigqaError where it is not there."""
    if asked is not None:
        if asked not in row:
            raise BigqaError(
                tr(
                    "{where} has no column {asked!r}; it has {list} (--{option})",
                    where=where,
                    asked=asked,
                    list=_list(row),
                    option=option,
                )
            )
        return asked
    lower = {name.strip().lower(): name for name in row}
    found = [lower[name] for name in usual if name in lower]
    if not found:
        raise BigqaError(
            tr(
                "{where}: which column to take? Of {list} none has a usual name: say --{option} NAME",
                where=where,
                list=_list(row),
                option=option,
            )
        )
    return found[0]


def _list(row: Row) -> str:
    return ", ".join(repr(name) for name in row)


def text_of(row: Row, column: str, where: str) -> str:
    """Return a text. Raises: BigqaError where there is none."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and value != value):
        raise BigqaError(
            tr(
                "{where}: {column!r} holds no text (null or NaN); fill it in, or leave the row out",
                where=where,
                column=column,
            )
        )
    if not isinstance(value, str):
        raise BigqaError(
            tr("{where}: {column!r} is {kind}, not text", where=where, column=column, kind=type(value).__name__)
        )
    if not value.strip():
        raise BigqaError(
            tr("{where}: {column!r} is empty; fill it in, or leave the row out", where=where, column=column)
        )
    return value
