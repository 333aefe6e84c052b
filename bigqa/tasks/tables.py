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
from bigqa.tasks.containers import DATA_SUFFIXES, PACKED_SUFFIXES, lines, texts_in_zip, values
from bigqa.tasks.documents import SEPARATED_SUFFIXES, data_files, name_of

DATA = "data file"
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
            raise BigqaError(f"{DATA} holds no row: {file}")


def table_files(path: Path) -> list[Path]:
    """Return the files of a table: the path itself, or what a folder, glob or id stands for. Raises: BigqaError."""
    return [path] if path.is_fifo() else data_files(path, DATA)  # what flows may be asked of a model, once


def _rows_of(file: Path) -> Iterator[Placed]:
    suffix = _suffix(file)
    if suffix not in SUFFIXES:
        raise BigqaError(f"{DATA} has none of the endings {', '.join(SUFFIXES)}: {file}; name its form so")
    if suffix in SEPARATORS:
        yield from _separated(lines(file, DATA), SEPARATORS[suffix], file)
        return
    texts = texts_in_zip(file, DATA, SEPARATED_SUFFIXES) if suffix == ".zip" else iter(())
    if (first := next(texts, None)) is not None:
        for member, text in chain([first], texts):
            yield from _separated(text, SEPARATORS[_suffix(Path(member))], file / member)
        return
    for value, where in values(file, DATA, columns=None):
        whole = where == f"{DATA} {file}"  # one value that is all there is: its rows, or its only row
        for number, row in enumerate(value if isinstance(value, list) else [value], 1):
            place = f"{where} row {number}" if whole or isinstance(value, list) else where
            if not isinstance(row, dict):
                raise BigqaError(f"{place} is {name_of(row)}, no JSON object; each should be {{column: value}}")
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
        found = next((one for one in ",;\t|" if one in first), ",")
        rows = csv.reader(chain([first] if first else [], text), delimiter=found)
    names = next(rows, [])
    if len(set(names)) != len(names):
        raise BigqaError(f"{DATA} {file}: two columns have one name in its first line; rename one")
    for number, found in enumerate(rows, 2):
        if not any(found):
            continue
        where = f"{DATA} {file} row {number}"
        if len(found) != len(names):
            raise BigqaError(f"{where} has {len(found)} columns, and the first line {len(names)}: is one not escaped?")
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
            raise BigqaError(f"{where} has no column {asked!r}; it has {_list(row)} (--{option})")
        return asked
    lower = {name.strip().lower(): name for name in row}
    found = [lower[name] for name in usual if name in lower]
    if not found:
        raise BigqaError(f"{where}: which column to take? Of {_list(row)} none has a usual name: say --{option} NAME")
    return found[0]


def _list(row: Row) -> str:
    return ", ".join(repr(name) for name in row)


def text_of(row: Row, column: str, where: str) -> str:
    """Return a text. Raises: BigqaError where there is none."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and value != value):
        raise BigqaError(f"{where}: {column!r} holds no text (null or NaN); fill it in, or leave the row out")
    if not isinstance(value, str):
        raise BigqaError(f"{where}: {column!r} is {type(value).__name__}, not text")
    if not value.strip():
        raise BigqaError(f"{where}: {column!r} is empty; fill it in, or leave the row out")
    return value
