"""What a data file holds, one value in memory at a time. In: a file, packed or not. Out: values and their places.

Told by its first bytes, not by its name: JSON, JSON lines, Parquet and Arrow; each of them packed by gzip, bzip2 or xz,
or in a zip. Lines of a text that is something else, unpacked alike. Nothing in a file is ever executed or unpickled.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from bigqa.contents import HEAD_BYTES, packing_of, what_else, what_encoding, what_no_text, what_zip
from bigqa.errors import BigqaError, in_a_line
from bigqa.files import decoded, parsed, unreadable
from bigqa.language import put, tr

UNPACKERS: dict[str, Callable[[IO[bytes]], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
UNPACK_ERRORS = (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What a broken archive raises; RuntimeError where a password is wanted, or a method of packing that Python lacks."""
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
PACKED_SUFFIXES = ("", ".gz", ".bz2", ".xz")
OF_DATASETS = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What `datasets` writes beside the data that it saves, of what it knows of them."""
BINARY_SUFFIXES = (".zip", ".parquet", ".arrow")
COLUMNS = ("id", "guid", "question_id", "title", "context", "question", "answers", "answer", "is_impossible")
"""Those of a table of questions that are read."""
BATCH_ROWS = 256


def values(path: Path, role: str, columns: Sequence[str] | None = COLUMNS) -> Iterator[tuple[Any, str]]:
    """Yield what a file holds, with its place: a JSON file's value, or one row after the other.

    `columns`: those of a table that are wanted; none: all. Raises: BigqaError.
    """
    with _told(path, role), path.open("rb") as file:
        yield from _values(file, str(path), role, columns)


def lines(path: Path, role: str) -> Iterator[str]:
    """Yield the lines of a text, unpacked, with what ends each. Raises: BigqaError."""
    with _told(path, role), path.open("rb") as file:
        unpacked = UNPACKERS.get(packing_of(_head(file)) or "", lambda same: same)(file)
        yield from _decoded_lines(unpacked, str(path), role)


def texts_in_zip(path: Path, role: str, suffixes: Sequence[str]) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield the name of each text of these endings in a zip, and its lines; none where it holds data of other forms."""
    with _told(path, role), zipfile.ZipFile(path) as archive:
        if any(map(is_data, archive.namelist())):
            return
        for member in sorted(name for name in archive.namelist() if is_data(name, suffixes)):
            with archive.open(member) as inner:
                yield member, _decoded_lines(inner, f"{path}/{member}", role)


def _decoded_lines(file: Any, name: str, role: str) -> Iterator[str]:
    if (known := what_no_text(_head(file))) is not None:
        raise BigqaError(f"{role} is {known}: {name}")
    try:
        yield from io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    except UnicodeDecodeError as error:
        raise BigqaError(
            tr(
                "{role} is not UTF-8: {name}: it is {encoding}",
                role=role,
                name=name,
                encoding=what_encoding(error.object),
            )
        ) from None


@contextlib.contextmanager
def _told(path: Path, role: str) -> Iterator[None]:
    """Tell in a line why a file cannot be read."""
    try:
        yield
    except BigqaError:
        raise
    except FileNotFoundError:
        raise BigqaError(tr("{role} not found: {path}", role=role, path=path)) from None
    except IsADirectoryError:
        raise BigqaError(tr("{role} is a folder, not a file: {path}", role=role, path=path)) from None
    except UNPACK_ERRORS as error:
        raise BigqaError(
            tr("{role} cannot be unpacked: {path}: {error}; fetch it again", role=role, path=path, error=error)
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise unreadable(path, role, error) from None


def is_data(name: str, suffixes: Sequence[str] = DATA_SUFFIXES) -> bool:
    """Say whether a file's name is that of data which is not a zip."""
    last = name.rpartition("/")[2]
    # A Mac adds "._name.json" beside each file it packs: binary, and not data.
    named_so = name.lower().endswith(tuple(data + packed for data in suffixes for packed in PACKED_SUFFIXES))
    return named_so and not last.startswith(".") and last not in OF_DATASETS


def _head(file: Any) -> bytes:
    """Return a file's first bytes, and leave it at its beginning; what flows is looked at ahead."""
    if hasattr(file, "peek"):
        return bytes(file.peek(HEAD_BYTES)[:HEAD_BYTES])
    head = bytes(file.read(HEAD_BYTES))
    file.seek(0)
    return head


def _values(file: IO[bytes], name: str, role: str, columns: Sequence[str] | None) -> Iterator[tuple[Any, str]]:
    head = _head(file)
    packing = packing_of(head)
    if packing is None and name.lower().endswith(BINARY_SUFFIXES):
        known = what_else(head)
        problem = (
            tr("is {known}", known=known)
            if known
            else tr("is no such file by its first bytes, so it cannot be unpacked; fetch it again")
        )
        raise BigqaError(tr("{role} {problem}: {name}", role=role, problem=problem, name=name))
    if packing in UNPACKERS:
        with UNPACKERS[packing](file) as inner:
            yield from _values(inner, name, role, columns)
    elif packing == "zip":
        yield from _of_zip(file, name, role, columns)
    elif packing is not None:
        yield from _of_table(file, packing, name, role, columns)
    else:
        yield from _of_text(file, name, role)


def _of_zip(file: IO[bytes], name: str, role: str, columns: Sequence[str] | None) -> Iterator[tuple[Any, str]]:
    with zipfile.ZipFile(file) as archive:
        members = sorted(member for member in archive.namelist() if is_data(member))
        if not members and (said := what_zip(archive.namelist())):
            raise BigqaError(tr("{role} is {said}: {name}", role=role, said=said, name=name))
        if not members:
            raise BigqaError(
                tr(
                    "{role}: zip holds no data ({data_suffixes}): {name}; name the one that does",
                    role=role,
                    data_suffixes=", ".join(DATA_SUFFIXES),
                    name=name,
                )
            )
        for member in members:
            with archive.open(member) as inner:
                yield from _values(inner, f"{name}/{member}", role, columns)


def _of_text(file: IO[bytes], name: str, role: str) -> Iterator[tuple[Any, str]]:
    lines = enumerate(_lines(file), start=1)
    before = _first_two(lines)
    full = [(number, line) for number, line in before if line.strip()]
    if len(full) == 2 and _is_object(full[0][1]):
        for number, line in chain(full, lines):
            if line.strip():
                place = tr("{name} line {number}", name=name, number=number)
                yield parsed(decoded(line, place, role), place, role), put("{role} {place}", role=role, place=place)
        return
    whole = b"".join(line for _, line in chain(before, lines))
    yield _rows_of_pandas(parsed(decoded(whole, name, role), name, role)), f"{role} {name}"


def _rows_of_pandas(value: Any) -> Any:
    """Return the rows of a table that pandas wrote column by column, as it does unless told; else the value itself."""
    if not isinstance(value, dict) or not value:
        return value
    if set(value) == {"columns", "index", "data"} and all(isinstance(row, list) for row in value["data"]):
        return [dict(zip(value["columns"], row, strict=False)) for row in value["data"]]
    first = next(iter(value.values()))
    numbers = list(first) if isinstance(first, dict) else []
    if not numbers or not all(number.isdecimal() for number in numbers):
        return value
    if not all(isinstance(column, dict) and list(column) == numbers for column in value.values()):
        return value
    return [{name: column[number] for name, column in value.items()} for number in numbers]


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines with what ends each: a line feed, or as on old Macs a carriage return alone."""
    for line in file:
        yield from line.splitlines(keepends=True) if b"\r" in line else (line,)


def _first_two(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Return the numbered lines up to the second one that holds anything."""
    found, full = [], 0
    for number, line in lines:
        found.append((number, line))
        full += bool(line.strip())
        if full == 2:
            break
    return found


def _is_object(line: bytes) -> bool:
    """Say whether a line is a JSON object by itself: then every line is."""
    line = line.strip().removeprefix(b"\xef\xbb\xbf")
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return False
    try:
        return isinstance(parsed(decoded(line, "", ""), "", ""), dict)
    except BigqaError:
        return False


def _of_table(
    file: IO[bytes], packing: str, name: str, role: str, columns: Sequence[str] | None
) -> Iterator[tuple[Any, str]]:
    try:
        number = 0
        for batch, metadata in _batches(file, packing, columns):
            batch.validate(full=True)  # Arrow's readers believe a damaged file, and read beyond its end
            classes = class_names(metadata)
            for row in batch.select(_held(batch.schema, columns)).to_pylist():
                number += 1
                yield _named(row, classes), tr("{role} {name} row {number}", role=role, name=name, number=number)
    # Of bytes that are not as they were written, pyarrow also raises SystemError, ValueError and others.
    except Exception as error:
        kind = "Parquet" if packing == "parquet" else "Arrow"
        raise BigqaError(
            tr(
                "{role} is a broken {kind} file: {name}: {error}",
                role=role,
                kind=kind,
                name=name,
                error=in_a_line(error),
            )
        ) from None


def _held(schema: Any, columns: Sequence[str] | None) -> list[str]:
    return list(schema.names) if columns is None else [column for column in columns if column in schema.names]


def _batches(file: IO[bytes], packing: str, columns: Sequence[str] | None) -> Iterator[tuple[Any, Any]]:
    """Yield batches of rows, and what is written beside the file's columns."""
    import pyarrow as pa

    source = file if isinstance(file, io.BufferedReader) else io.BytesIO(file.read())
    if packing == "parquet":
        from pyarrow import parquet

        table = parquet.ParquetFile(source)
        schema = table.schema_arrow
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=_held(schema, columns)):
            yield batch, schema.metadata
    elif packing == "arrow stream":
        yield from ((batch, batch.schema.metadata) for batch in pa.ipc.open_stream(source))
    else:
        reader = pa.ipc.open_file(source)
        found = map(reader.get_batch, range(reader.num_record_batches))
        yield from ((batch, batch.schema.metadata) for batch in found)


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


def _named(row: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    for column, known in classes.items():
        value = row.get(column)
        if isinstance(value, list):
            row[column] = [known[one] for one in value]
        elif isinstance(value, int) and value >= 0:
            row[column] = known[value]
        elif value == -1:
            row[column] = None  # as `datasets` marks what has no label
    return row
