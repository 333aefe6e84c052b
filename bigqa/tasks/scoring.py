"""Scores of a file of predictions against gold files.

In: golds (KorQuAD 1.0 or SQuAD-like JSON; for 2.x a JSON file, a zip, or a folder of either), predictions as
one JSON object `{id: text}`, and the metric's name. Out: a `Score`.
Run: `evaluate_files(gold, predictions, "korquad1")`.
"""

import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json
from bigqa.tasks import korquad1, korquad2
from bigqa.tasks.korquad1 import Golds, Predictions, Score

T = TypeVar("T")
GOLD = "gold file"
JSON_NAMES = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
ADVICE = "choose the metric of this data set, or mend the file"
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError)
"""What `zipfile` raises for a broken archive; RuntimeError where a password is wanted."""


@dataclass(frozen=True)
class Question:
    """One question of a gold file; `where` says in which file and at which place."""

    id: str
    golds: list[str]
    where: str


@dataclass(frozen=True)
class Metric:
    """How a data set is read and scored."""

    read: Callable[[Path], Iterable[Question]]
    score: Callable[[Golds, Predictions], Score]


def evaluate_files(gold: Path, predictions: Path, metric: str) -> Score:
    """Score a predictions file.

    Raises: UsageError for an unknown metric; BigqaError where a file is unreadable or has a wrong form.
    """
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    answers = _read_predictions(predictions)
    golds = _read_golds(gold, METRICS[metric])
    try:
        return METRICS[metric].score(golds, answers)
    except BigqaError as error:  # a score knows the question, only we know the files
        raise BigqaError(f"{error} (gold: {gold}, predictions: {predictions})") from None


def _read_predictions(path: Path) -> dict[str, Any]:
    value = read_json(path, "predictions file")
    if not isinstance(value, dict):
        raise BigqaError(f"predictions file is {_name(value)}: {path}; it should be one object {{id: text}}")
    return value


def _read_golds(path: Path, metric: Metric) -> dict[str, list[str]]:
    golds: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for question in metric.read(path):
        if question.id in golds:
            first = places[question.id]
            raise BigqaError(
                f"{question.where}: question id {question.id!r} is there twice, first in {first}; keep one"
            )
        golds[question.id], places[question.id] = question.golds, question.where
    if not golds:
        raise BigqaError(f"{GOLD} holds no question: {path}")
    return golds


def _read_korquad1(path: Path) -> Iterator[Question]:
    for article, article_where in _items(read_json(path, GOLD), "data", f"{GOLD} {path}"):
        for paragraph, paragraph_where in _items(article, "paragraphs", article_where):
            for qa, where in _items(paragraph, "qas", paragraph_where):
                golds = [_field(answer, "text", str, at) for answer, at in _items(qa, "answers", where)]
                yield Question(_field(qa, "id", str, where), golds, where)


def _read_korquad2(path: Path) -> Iterator[Question]:
    for document, document_where in _documents(path):
        for article, article_where in _items(document, "data", document_where):
            for qa, where in _items(article, "qas", article_where):
                answer = _field(qa, "answer", dict, where)
                text = _field(answer, "text", str, f"{where}.answer")
                yield Question(_field(qa, "id", str, where), [text], where)


def _items(record: Any, key: str, where: str) -> Iterator[tuple[Any, str]]:
    """Yield each item of the list `record[key]` with its place."""
    for index, item in enumerate(_field(record, key, list, where)):
        yield item, f"{where} {key}[{index}]"


def _field(record: Any, key: str, kind: type[T], where: str) -> T:
    """Return `record[key]`, or say what stands there instead of a `kind`."""
    if not isinstance(record, dict):
        raise BigqaError(f"{where} is {_name(record)}, not an object; {ADVICE}")
    if key not in record:
        raise BigqaError(f'{where} has no "{key}"; {ADVICE}')
    value = record[key]
    if not isinstance(value, kind):
        raise BigqaError(f'{where}: "{key}" is {_name(value)}, not {JSON_NAMES[kind]}; {ADVICE}')
    return value


def _name(value: Any) -> str:
    return JSON_NAMES.get(type(value), "a number")


def _documents(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield each JSON value of a file, a zip or a folder with its place, one in memory at a time."""
    if path.is_dir():
        for file in _files_of(path):
            yield from _documents(file)
    elif path.suffix.lower() == ".zip":
        yield from _zip_documents(path)
    else:
        yield read_json(path, GOLD), f"{GOLD} {path}"


def _files_of(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise BigqaError(f"gold folder cannot be read: {folder}: {error.strerror}") from None
    # The official script reads a folder's JSON files alone, so zips left beside them must not count twice.
    for suffix in (".json", ".zip"):
        files = [entry for entry in entries if _is_data(entry.name, suffix) and entry.is_file()]
        if files:
            return files
    raise BigqaError(f"gold folder holds no .json and no .zip file: {folder}; name the one that does")


def _is_data(name: str, suffix: str) -> bool:
    # A Mac adds "._name.json" beside each file it packs: binary, and not data.
    return name.lower().endswith(suffix) and not name.rpartition("/")[2].startswith(".")


def _zip_documents(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if _is_data(name, ".json"))
            if not names:
                raise BigqaError(f"zip of golds holds no .json file: {path}; name the zip of the data set")
            for name in names:
                member = zipfile.Path(archive, name)
                # No `Path`, but it has the two things `read_json` wants: `read_bytes` and a name to print.
                yield read_json(cast(Path, member), GOLD), f"{GOLD} {member}"
    except FileNotFoundError:
        raise BigqaError(f"{GOLD} not found: {path}") from None
    except OSError as error:
        raise BigqaError(f"zip of golds cannot be read: {path}: {error.strerror or error}") from None
    except ZIP_ERRORS as error:
        raise BigqaError(f"zip of golds cannot be unpacked: {path}: {error}; fetch it again") from None


METRICS = {
    "korquad1": Metric(_read_korquad1, korquad1.score),
    "korquad2": Metric(_read_korquad2, korquad2.score),
}
