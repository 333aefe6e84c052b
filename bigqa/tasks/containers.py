"""What a data file holds, one value in memory at a time. In: a file, packed or not. Out: values and their places.

Told by its first bytes, not by its name: JSON, JSON lines, Parquet and Arrow; each of them packed by gzip, bzip2 or xz,
or in a zip. Nothing in a file is ever executed or unpickled.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from bigqa.contents import HEAD_BYTES, packing_of, what_else, what_zip
from bigqa.errors import BigqaError, in_a_line
from bigqa.files import decoded, parsed

UNPACKERS: dict[str, Callable[[IO[bytes]], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
UNPACK_ERRORS = (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What a broken archive raises; RuntimeError where a password is wanted, or a method of packing that Python lacks."""
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
PACKED_SUFFIXES = ("", ".gz", ".bz2", ".xz")
BINARY_SUFFIXES = (".zip", ".parquet", ".arrow")
COLUMNS = ("id", "guid", "title", "context", "question", "answers", "answer", "is_impossible")
"""Those of a table that are read."""
BATCH_ROWS = 256


def values(path: Path, role: str) -> Iterator[tuple[Any, str]]:
    """Yield what a file holds, with its place: a JSON file's value, or one row after the other."""
    try:
        with path.open("rb") as file:
            yield from _values(file, str(path), role)
    except FileNotFoundError:
        raise BigqaError(f"{role} not found: {path}") from None
    except IsADirectoryError:
        raise BigqaError(f"{role} is a folder, not a file: {path}") from None
    except UNPACK_ERRORS as error:
        raise BigqaError(f"{role} cannot be unpacked: {path}: {error}; fetch it again") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise BigqaError(f"{role} cannot be read: {path}: {getattr(error, 'strerror', None) or error}") from None


def is_data(name: str) -> bool:
    """Say whether a file's name is that of data which is not a zip."""
    # A Mac adds "._name.json" beside each file it packs: binary, and not data.
    named_so = name.lower().endswith(tuple(data + packed for data in DATA_SUFFIXES for packed in PACKED_SUFFIXES))
    return named_so and not name.rpartition("/")[2].startswith(".")


def _values(file: IO[bytes], name: str, role: str) -> Iterator[tuple[Any, str]]:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    packing = packing_of(head)
    if packing is None and name.lower().endswith(BINARY_SUFFIXES):
        known = what_else(head)
        problem = (
            f"is {known}" if known else "is no such file by its first bytes, so it cannot be unpacked; fetch it again"
        )
        raise BigqaError(f"{role} {problem}: {name}")
    if packing in UNPACKERS:
        with UNPACKERS[packing](file) as inner:
            yield from _values(inner, name, role)
    elif packing == "zip":
        yield from _of_zip(file, name, role)
    elif packing is not None:
        yield from _of_table(file, packing, name, role)
    else:
        yield from _of_text(file, name, role)


def _of_zip(file: IO[bytes], name: str, role: str) -> Iterator[tuple[Any, str]]:
    with zipfile.ZipFile(file) as archive:
        members = sorted(member for member in archive.namelist() if is_data(member))
        if not members and (said := what_zip(archive.namelist())):
            raise BigqaError(f"{role} is {said}: {name}")
        if not members:
            raise BigqaError(f"{role}: zip holds no data ({', '.join(DATA_SUFFIXES)}): {name}; name the one that does")
        for member in members:
            with archive.open(member) as inner:
                yield from _values(inner, f"{name}/{member}", role)


def _of_text(file: IO[bytes], name: str, role: str) -> Iterator[tuple[Any, str]]:
    first = file.readline()
    following = _next_line(file)
    if following and _is_object(first):
        yield parsed(decoded(first, name, role), name, role), f"{role} {name} line 1"
        for number, line in enumerate((following, *file), start=2 if following.strip() else 1):
            if line.strip():
                place = f"{name} line {number}"
                yield parsed(decoded(line, place, role), place, role), f"{role} {place}"
        return
    yield parsed(decoded(first + following + file.read(), name, role), name, role), f"{role} {name}"


def _next_line(file: IO[bytes]) -> bytes:
    """Return the next line that holds anything."""
    for line in file:
        if line.strip():
            return line
    return b""


def _is_object(line: bytes) -> bool:
    """Say whether a line is a JSON object by itself: then every line is."""
    line = line.strip().removeprefix(b"\xef\xbb\xbf")
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return False
    try:
        return isinstance(parsed(decoded(line, "", ""), "", ""), dict)
    except BigqaError:
        return False


def _of_table(file: IO[bytes], packing: str, name: str, role: str) -> Iterator[tuple[Any, str]]:
    try:
        number = 0
        for batch in _batches(file, packing):
            batch.validate(full=True)  # Arrow's readers believe a damaged file, and read beyond its end
            held = [column for column in COLUMNS if column in batch.schema.names]
            for row in batch.select(held).to_pylist():
                number += 1
                yield row, f"{role} {name} row {number}"
    # Of bytes that are not as they were written, pyarrow also raises SystemError, ValueError and others.
    except Exception as error:
        kind = "Parquet" if packing == "parquet" else "Arrow"
        raise BigqaError(f"{role} is a broken {kind} file: {name}: {in_a_line(error)}") from None


def _batches(file: IO[bytes], packing: str) -> Iterator[Any]:
    import pyarrow as pa

    source = file if isinstance(file, io.BufferedReader) else io.BytesIO(file.read())
    if packing == "parquet":
        from pyarrow import parquet

        table = parquet.ParquetFile(source)
        held = [column for column in COLUMNS if column in table.schema_arrow.names]
        yield from table.iter_batches(batch_size=BATCH_ROWS, columns=held)
    elif packing == "arrow stream":
        yield from pa.ipc.open_stream(source)
    else:
        reader = pa.ipc.open_file(source)
        yield from map(reader.get_batch, range(reader.num_record_batches))
