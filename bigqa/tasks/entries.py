"""Questions of every form of data, as they stand in a file. In: data. Out: entries and their places, not checked yet.

The forms, told by their content: paragraphs of KorQuAD 1.0, SQuAD and KLUE-MRC; one HTML document per article, of
KorQuAD 2.x; rows with the columns that hubs of data sets have (id, context, question, answers as lists of text and
answer_start), alone in JSON lines or tables, or in a list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigqa.errors import BigqaError
from bigqa.language import put, tr
from bigqa.tasks.documents import documents, field, items, name_of

Form = Literal["paragraphs", "document", "row"]
NAMES = ("id", "guid", "question_id")
"""What a question's name is called: by SQuAD, by KLUE, by AI Hub."""
TITLES = ("title", "doc_title")


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
        """Its name."""
        key = next((one for one in NAMES if isinstance(self.qa, dict) and one in self.qa), NAMES[0])
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
        if said is not None and said not in (False, True):  # or 0 and 1
            raise BigqaError(
                tr('{where}: "is_impossible" is {found}, not true or false', where=self.where, found=name_of(said))
            )
        return _is_true(said) or (self.form == "row" and said is None and self.qa.get("answers") == [])


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
            yield from ((item, put("{where} [{index}]", where=where, index=index)) for index, item in enumerate(value))
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
            yield Entry(_qa_of_article(qa), context, _title(article), form or "paragraphs", qa_where)


def _check_form(form: Form | None, wanted: Form, where: str) -> None:
    if wanted == "paragraphs" and form not in ("paragraphs", "row"):
        raise BigqaError(tr('{where} has no "paragraphs"; choose the metric of this data set', where=where))
    if wanted == "document" and form != "document":
        raise BigqaError(tr('{where} has no "qas"; choose the metric of this data set', where=where))


def _title(article: Any) -> str:
    found = article if isinstance(article, dict) else {}
    return str(next((found[name] for name in TITLES if name in found), ""))


def _qa_of_article(qa: Any) -> Any:
    """Return a question of an article as SQuAD has it: AI Hub has its only answer in no list, be it plausible alone."""
    if not isinstance(qa, dict):
        return qa
    qa, only = _named_by_text(qa, NAMES[2:]), qa.get("answers")  # in SQuAD's own form a number is a mistake
    if not (isinstance(only, dict) and isinstance(only.get("text"), str)):
        return qa
    return qa | {"answers": [] if _is_true(qa.get("is_impossible")) else [only]}


def _qa_of_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row's question as SQuAD has it: answers as objects; those of an impossible one are merely plausible."""
    qa = {key: value for key, value in row.items() if value is not None or key not in (*NAMES, "answers")}
    answers = qa.get("answers")
    if isinstance(answers, dict):
        texts = field(answers, "text", list, put("{where} answers", where=where))
        starts = (
            field(answers, "answer_start", list, put("{where} answers", where=where))
            if "answer_start" in answers
            else [None] * len(texts)
        )
        if len(texts) != len(starts):
            raise BigqaError(
                tr(
                    "{where} has {answers} answers and {places} places for them",
                    where=where,
                    answers=len(texts),
                    places=len(starts),
                )
            )
        qa["answers"] = [
            {"text": text} | ({} if start is None else {"answer_start": start})
            for text, start in zip(texts, starts, strict=True)
        ]
    return _named_by_text(qa, NAMES) | ({"answers": []} if _is_true(qa.get("is_impossible")) else {})


def _named_by_text(qa: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return a question whose name is text, be it a number in the file."""
    names = {key: qa[key] for key in keys if isinstance(qa.get(key), int | float) and not isinstance(qa[key], bool)}
    whole = {key: str(int(value)) for key, value in names.items() if value == value // 1}
    return qa | whole


def _is_true(said: Any) -> bool:
    """Whether JSON says true, or 1 in its place, as a column of numbers does."""
    return said is True or (isinstance(said, int | float) and said == 1)
