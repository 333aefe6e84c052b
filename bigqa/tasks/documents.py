"""Where data lies. In: a file, a folder, a glob, or the id of a data set on the hub. Out: its files and their values.

Fields of what is held are read here too; what is not there, or of another kind, is said in one line with its place.
"""

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from bigqa.errors import BigqaError
from bigqa.files import read_json, unreadable
from bigqa.language import put, tr
from bigqa.tasks.containers import DATA_SUFFIXES, is_data, values
from bigqa.tasks.hub import hub_files, is_hub_id
from bigqa.tasks.splits import split_of

T = TypeVar("T")
WANTED_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number"}
FOUND_NAMES = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
FOUND_NAMES[bytes] = "bytes"
SEPARATED_SUFFIXES = (".tsv", ".csv")
"""Of tables of texts; of questions, what is in them is refused by its name."""
ADDRESS = re.compile(r"(https?|ftp|s3|gs|hdfs|hf):/")
"""How one begins; a path has one of its two strokes."""
ADVICE = tr("is it KorQuAD or SQuAD data?")
SHOWN = 8
"""Names of a record that an error repeats."""


def documents(path: Path, role: str) -> Iterator[tuple[Any, str]]:
    """Yield each JSON value or row of a data set with its place. `role` names the data in an error."""
    for file in data_files(path, role):
        yield from values(file, role)


def names_data(path: Path) -> bool:
    """Say whether a path is there, or stands for files: a glob, or what may be the id of a data set."""
    return path.exists() or glob.has_magic(str(path)) or is_hub_id(str(path))


def check_there(path: Path, role: str = tr("data file")) -> None:
    """Refuse a path that names nothing; what is in it is read later. Raises: BigqaError."""
    data_files(path, role)


def data_files(path: Path, role: str) -> list[Path]:
    """Return the files that `documents` reads: the path itself, or what a folder, a glob or an id stands for."""
    try:
        if path.is_dir():
            return _of_folder(path, role)
        if path.exists() and not path.is_file():
            raise BigqaError(
                tr(
                    "{role} is a pipe or a device, and data is read more than once: {path}; save it to a file",
                    role=role,
                    path=path,
                )
            )
        if path.exists():
            return [path]
        if glob.has_magic(str(path)):
            return _of_glob(path, role)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise unreadable(path, role, error) from None
    return _of_hub(path, role)


def _of_glob(path: Path, role: str) -> list[Path]:
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    files = [file for one in found for file in (_of_folder(one, role) if one.is_dir() else [one])]
    if not files:
        raise BigqaError(tr("{role} not found: no file is named like {path}", role=role, path=path))
    return files


def _of_folder(path: Path, role: str) -> list[Path]:
    entries = sorted(path.iterdir())
    names = {entry.name for entry in entries}
    if "dataset_dict.json" in names:
        raise BigqaError(
            tr(
                "{role} folder holds several splits: {path}; name one: {splits_of}",
                role=role,
                path=path,
                splits_of=", ".join(_splits_of(path)),
            )
        )
    if {"state.json", "dataset_info.json"} <= names:
        return _of_datasets(path, role)
    # The official script reads a folder's JSON files alone, so what is left beside them must not count twice.
    for is_kind in (_is_json, _is_zip, is_data, _is_separated):
        files = [entry for entry in entries if is_kind(entry.name) and entry.is_file()]
        if files:
            return _of_one_split(files, path, role)
    kinds = ", ".join((*DATA_SUFFIXES, *SEPARATED_SUFFIXES, ".zip"))
    raise BigqaError(
        tr("{role} folder holds no data ({kinds}): {path}; name the one that does", role=role, kinds=kinds, path=path)
    )


def _of_datasets(path: Path, role: str) -> list[Path]:
    """Return the files of a folder that `datasets` saved, in its order."""
    state = read_json(path / "state.json", tr("{role}: the state of a saved data set", role=role))
    files = [field(item, "filename", str, where) for item, where in items(state, "_data_files", f"{path}/state.json")]
    missing = [name for name in files if not (path / name).is_file() or Path(name).name != name]
    if missing or not files:
        raise BigqaError(
            tr(
                "{role}: {path} lacks {missing}; save the data set again",
                role=role,
                path=path,
                missing=missing[0] if missing else tr("its files"),
            )
        )
    return [path / name for name in files]


def _splits_of(path: Path) -> list[str]:
    return sorted(str(entry) for entry in path.iterdir() if entry.is_dir() and (entry / "state.json").is_file())


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json") and is_data(name)


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip") and not name.startswith(".")


def _is_separated(name: str) -> bool:
    return is_data(name, SEPARATED_SUFFIXES)


def _of_one_split(files: list[Path], path: Path, role: str) -> list[Path]:
    splits = sorted({split for file in files if (split := split_of(file.name))})
    if len(splits) > 1:
        example = path / f"{splits[0]}*"
        raise BigqaError(
            tr(
                "{role} folder holds the splits {splits}: {path}; name one by a glob: '{example}'",
                role=role,
                splits=", ".join(splits),
                path=path,
                example=example,
            )
        )
    return files


def _of_hub(path: Path, role: str) -> list[Path]:
    if ADDRESS.match(str(path)):
        raise BigqaError(tr("{role} is an address, not a file: {path}; fetch it first", role=role, path=path))
    if not is_hub_id(str(path)):
        raise BigqaError(tr("{role} not found: {path}", role=role, path=path))
    return hub_files(str(path), role)


def items(record: Any, key: str, where: str) -> Iterator[tuple[Any, str]]:
    """Yield each item of the list `record[key]` with its place."""
    for index, item in enumerate(field(record, key, list, where)):
        yield item, put("{where} {key}[{index}]", where=where, key=key, index=index)


def field(record: Any, key: str, kind: type[T], where: str) -> T:
    """Return `record[key]`, or say what stands there instead of a `kind`."""
    if not isinstance(record, dict):
        raise BigqaError(
            tr("{where} is {found}, not an object; {advice}", where=where, found=name_of(record), advice=ADVICE)
        )
    if key not in record:
        raise BigqaError(
            tr(
                '{where} has no "{key}"{instead}; {advice}',
                where=where,
                key=key,
                instead=_instead(record),
                advice=ADVICE,
            )
        )
    value = record[key]
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # as pandas writes the numbers of a column that has gaps
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BigqaError(
            tr(
                '{where}: "{key}" is {found}, not {wanted}; {advice}',
                where=where,
                key=key,
                found=name_of(value),
                wanted=WANTED_NAMES[kind],
                advice=ADVICE,
            )
        )
    return value


def _instead(record: dict[str, Any]) -> str:
    """Say what a record has: its columns may have other names."""
    names = ", ".join(str(name) for name in list(record)[:SHOWN])
    return f" (it has {names}{', ...' if len(record) > SHOWN else ''})" if record else ""


def name_of(value: Any) -> str:
    """Name the kind of a value of JSON, or of a table."""
    known = FOUND_NAMES.get(type(value))
    return known or ("a number" if isinstance(value, int | float) else f"of the type {type(value).__name__}")
