"""JSON documents of a data set, one in memory at a time. In: a JSON file, a zip of them, or a folder of either.

Out: each document and the place it stands at, and its fields; what is not there, or of another kind, is said in one
line with its place.
"""

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from bigqa.errors import BigqaError
from bigqa.files import read_json

T = TypeVar("T")
WANTED_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number"}
FOUND_NAMES = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
ADVICE = "is it KorQuAD or SQuAD data?"
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError)
"""What `zipfile` raises for a broken archive; RuntimeError where a password is wanted."""


def documents(path: Path, role: str) -> Iterator[tuple[Any, str]]:
    """Yield each JSON value of a file, a zip or a folder with its place. `role` names the data in an error."""
    if path.is_dir():
        for file in data_files(path, role):
            yield from documents(file, role)
    elif path.suffix.lower() == ".zip":
        yield from _zip_documents(path, role)
    else:
        yield read_json(path, role), f"{role} {path}"


def data_files(path: Path, role: str) -> list[Path]:
    """Return the files that `documents` reads: the path itself, or what a folder holds."""
    if not path.is_dir():
        return [path]
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise BigqaError(f"{role} folder cannot be read: {path}: {error.strerror}") from None
    # The official script reads a folder's JSON files alone, so zips left beside them must not count twice.
    for suffix in (".json", ".zip"):
        files = [entry for entry in entries if _is_data(entry.name, suffix) and entry.is_file()]
        if files:
            return files
    raise BigqaError(f"{role} folder holds no .json and no .zip file: {path}; name the one that does")


def items(record: Any, key: str, where: str) -> Iterator[tuple[Any, str]]:
    """Yield each item of the list `record[key]` with its place."""
    for index, item in enumerate(field(record, key, list, where)):
        yield item, f"{where} {key}[{index}]"


def field(record: Any, key: str, kind: type[T], where: str) -> T:
    """Return `record[key]`, or say what stands there instead of a `kind`."""
    if not isinstance(record, dict):
        raise BigqaError(f"{where} is {name_of(record)}, not an object; {ADVICE}")
    if key not in record:
        raise BigqaError(f'{where} has no "{key}"; {ADVICE}')
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BigqaError(f'{where}: "{key}" is {name_of(value)}, not {WANTED_NAMES[kind]}; {ADVICE}')
    return value


def name_of(value: Any) -> str:
    """Name the kind of a JSON value."""
    return FOUND_NAMES.get(type(value), "a number")


def _is_data(name: str, suffix: str) -> bool:
    # A Mac adds "._name.json" beside each file it packs: binary, and not data.
    return name.lower().endswith(suffix) and not name.rpartition("/")[2].startswith(".")


def _zip_documents(path: Path, role: str) -> Iterator[tuple[Any, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if _is_data(name, ".json"))
            if not names:
                raise BigqaError(f"{role}: zip holds no .json file: {path}; name the zip of the data set")
            for name in names:
                member = zipfile.Path(archive, name)
                # No `Path`, but it has the two things `read_json` wants: `read_bytes` and a name to print.
                yield read_json(cast(Path, member), role), f"{role} {member}"
    except FileNotFoundError:
        raise BigqaError(f"{role} not found: {path}") from None
    except OSError as error:
        raise BigqaError(f"{role}: zip cannot be read: {path}: {error.strerror or error}") from None
    except ZIP_ERRORS as error:
        raise BigqaError(f"{role}: zip cannot be unpacked: {path}: {error}; fetch it again") from None
