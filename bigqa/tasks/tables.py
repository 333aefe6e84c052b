"""Tables of texts and labels, a row at a time. In: TSV, CSV, JSON lines, Parquet, a folder of them or one that
`datasets` saved; any of the first three also as .gz. Out: rows by column and the place of each, or one line that says
what is wrong.
"""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigqa.contents import what_encoding
from bigqa.errors import BigqaError

DATA = "data file"
Row = dict[str, Any]
Placed = tuple[Row, str]
"""A row, and where it stands."""
SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
SUFFIXES = (*SEPARATORS, ".jsonl", ".json", ".ndjson", ".parquet", ".arrow")
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
    """Return the files of a table: the path itself, or what a folder holds."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in SUFFIXES and _is_data(file))
    if not files:
        raise BigqaError(f"{DATA}: the folder holds no table ({', '.join(SUFFIXES)}): {path}")
    saved = [file for file in files if file.suffix == ".arrow"]
    return saved or files


def _is_data(file: Path) -> bool:
    # `datasets` writes what it knows of the data beside it.
    return not file.name.startswith(".") and file.name not in ("dataset_info.json", "state.json", "dataset_dict.json")


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _rows_of(file: Path) -> Iterator[Placed]:
    suffix = _suffix(file)
    if suffix not in SUFFIXES:
        raise BigqaError(f"{DATA} has none of the endings {', '.join(SUFFIXES)}: {file}; name its form so")
    try:
        if suffix in (".parquet", ".arrow"):
            yield from _of_batches(_batches(file), file)
        elif suffix in SEPARATORS:
            with _opened(file) as stream:
                yield from _separated(stream, SEPARATORS[suffix], file)
        else:
            with _opened(file) as stream:
                yield from _json_rows(stream, file)
    except FileNotFoundError:
        raise BigqaError(f"{DATA} not found: {file}") from None
    except UnicodeDecodeError as error:
        raise BigqaError(f"{DATA} is not UTF-8: {file}: it is {what_encoding(error.object)}") from None
    except (gzip.BadGzipFile, EOFError, pa.ArrowInvalid) as error:
        raise BigqaError(f"{DATA} is damaged or cut short: {file}: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise BigqaError(f"{DATA} cannot be read: {file}: {error.strerror or error}") from None


def _opened(file: Path) -> IO[str]:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _separated(stream: IO[str], separator: str, file: Path) -> Iterator[Placed]:
    """Yield rows of a table with a header. Tabs part columns whatever is quoted; commas do not within quotes."""
    if separator == "\t":
        lines: Iterator[list[str]] = ([_unquoted(one) for one in line.rstrip("\r\n").split("\t")] for line in stream)
    else:
        lines = csv.reader(stream)
    names = next(lines, [])
    if len(set(names)) != len(names):
        raise BigqaError(f"{DATA} {file}: two columns have one name in its first line; rename one")
    for number, values in enumerate(lines, 2):
        if not any(values):
            continue
        where = f"{DATA} {file} row {number}"
        if len(values) != len(names):
            raise BigqaError(f"{where} has {len(values)} columns, and the first line {len(names)}: is one not escaped?")
        yield dict(zip(names, values, strict=True)), where


def _unquoted(text: str) -> str:
    """Take away the quotes around a column that a spreadsheet put there; others are the text's own."""
    inner = text[1:-1]
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else text


def _json_rows(stream: IO[str], file: Path) -> Iterator[Placed]:
    if _suffix(file) == ".json":
        text = stream.read()
        if text.lstrip().startswith("["):
            yield from _checked(enumerate(_parsed(text, f"{DATA} {file}"), 1), file)
            return
        lines: Iterable[str] = text.splitlines()
    else:
        lines = stream
    texts = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    yield from _checked(((number, _parsed(line, f"{DATA} {file} row {number}")) for number, line in texts), file)


def _checked(values: Iterable[tuple[int, Any]], file: Path) -> Iterator[Placed]:
    for number, value in values:
        if not isinstance(value, dict):
            raise BigqaError(f"{DATA} {file} row {number} is no JSON object; each should be {{column: value}}")
        yield value, f"{DATA} {file} row {number}"


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BigqaError(f"{where} is not JSON: {str(error).splitlines()[0]}") from None


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.suffix.lower() == ".parquet":
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            yield from (batch.replace_schema_metadata(schema.metadata) for batch in parquet.iter_batches(1024))
        return
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            batch.validate(full=True)  # Arrow's readers believe a damaged file, and read beyond its end
            yield batch


def _of_batches(batches: Iterator[pa.RecordBatch], file: Path) -> Iterator[Placed]:
    number = 0
    for batch in batches:
        names = class_names(batch.schema.metadata)
        for row in batch.to_pylist():
            number += 1
            yield _named(row, names), f"{DATA} {file} row {number}"


def class_names(metadata: Any) -> dict[str, list[str]]:
    """Return column -> the names of its classes, as `datasets` writes them into a file."""
    told = (metadata or {}).get(b"huggingface")
    features = json.loads(told).get("info", {}).get("features", {}) if told else {}
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("names"):
            found[column] = list(inner["names"])
    return found


def _named(row: Row, names: dict[str, list[str]]) -> Row:
    for column, known in names.items():
        value = row.get(column)
        if isinstance(value, list):
            row[column] = [known[one] for one in value]
        elif isinstance(value, int) and value >= 0:
            row[column] = known[value]
        elif value == -1:
            row[column] = None  # as `datasets` marks what has no label
    return row


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
