"""Questions of every form of data, as they stand in a file. In: data. Out: entries and their places, not checked yet.

The forms, told by their content: paragraphs of KorQuAD 1.0, SQuAD and KLUE-MRC; one HTML document per article, of
KorQuAD 2.x; rows with the columns that hubs of data sets have (id, context, question, answers as lists of text and
answer_start), alone in JSON lines or tables, or in a list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigqa.errors import BigqaError
from bigqa.tasks.documents import documents, field, items, name_of

Form = Literal["paragraphs", "document", "row"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One question as it stands: `qa` with its `context`, and where."""

    qa: Any
    context: Any
    title: str
    form: Form
    where: str

    @property
    def id(self) -> str:
        """Its name: KLUE calls it `guid`."""
        key = "guid" if isinstance(self.qa, dict) and "id" not in self.qa and "guid" in self.qa else "id"
        return field(self.qa, key, str, self.where)

    @property
    def is_klue(self) -> bool:
        """Whether it is of KLUE-MRC."""
        return isinstance(self.qa, dict) and "guid" in self.qa

    @property
    def is_impossible(self) -> bool:
        """Whether it says that it has no answer; a row says so by an empty list alone, as SQuAD 2's do."""
        if not isinstance(self.qa, dict):
            return False
        said = self.qa.get("is_impossible")
        if said is not None and not isinstance(said, bool):
            raise BigqaError(f'{self.where}: "is_impossible" is {name_of(said)}, not true or false')
        return bool(said) or (self.form == "row" and said is None and self.qa.get("answers") == [])


def entries(path: Path, role: str, wanted: Form | None = None) -> Iterator[Entry]:
    """Yield the questions of a data set. `wanted`: the form that a metric is for. Raises: BigqaError."""
    for article, where in articles(path, role):
        yield from of_article(article, where, wanted)


def articles(path: Path, role: str) -> Iterator[tuple[Any, str]]:
    """Yield what a data set is a list of, one document in memory at a time: articles, or rows."""
    for value, where in documents(path, role):
        if form_of(value) is not None:
            yield value, where
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from ((item, f"{where} [{index}]") for index, item in enumerate(value))
        else:
            yield from items(value, "data", where)


def form_of(article: Any) -> Form | None:
    """Return the form that an article, or a row, has; None where it has none."""
    if not isinstance(article, dict):
        return None
    if "paragraphs" in article:
        return "paragraphs"
    if "qas" in article:
        return "document"
    return "row" if "question" in article and "data" not in article else None


def of_article(article: Any, where: str, wanted: Form | None = None) -> Iterator[Entry]:
    """Yield the questions of one article, or of one row. Raises: BigqaError."""
    form = form_of(article)
    if wanted is not None and isinstance(article, dict):
        _check_form(form, wanted, where)
    if form == "row":
        yield Entry(_qa_of_row(article, where), article.get("context"), _title(article), "row", where)
        return
    parts = [(article, where)] if form == "document" else items(article, "paragraphs", where)
    for part, part_where in parts:
        for qa, qa_where in items(part, "qas", part_where):
            context = part.get("context")
            yield Entry(qa, context, _title(article), form or "paragraphs", qa_where)


def _check_form(form: Form | None, wanted: Form, where: str) -> None:
    if wanted == "paragraphs" and form not in ("paragraphs", "row"):
        raise BigqaError(f'{where} has no "paragraphs"; choose the metric of this data set')
    if wanted == "document" and form != "document":
        raise BigqaError(f'{where} has no "qas"; choose the metric of this data set')


def _title(article: Any) -> str:
    return str(article.get("title", "")) if isinstance(article, dict) else ""


def _qa_of_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row's question as SQuAD has it: answers as objects; those of an impossible one are merely plausible."""
    qa = dict(row)
    for key in ("id", "guid"):
        if isinstance(qa.get(key), int) and not isinstance(qa[key], bool):
            qa[key] = str(qa[key])
        elif key in qa and qa[key] is None:
            del qa[key]
    answers = qa.get("answers")
    if isinstance(answers, dict):
        texts = field(answers, "text", list, f"{where} answers")
        starts = (
            field(answers, "answer_start", list, f"{where} answers")
            if "answer_start" in answers
            else [None] * len(texts)
        )
        if len(texts) != len(starts):
            raise BigqaError(f"{where} has {len(texts)} answers and {len(starts)} places for them")
        qa["answers"] = [
            {"text": text} | ({} if start is None else {"answer_start": start})
            for text, start in zip(texts, starts, strict=True)
        ]
    elif answers is None and "answers" in qa:
        del qa["answers"]
    return qa | ({"answers": []} if qa.get("is_impossible") is True else {})
