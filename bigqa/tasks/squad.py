"""Questions of KorQuAD 1.0, KorQuAD 2.x, KLUE-MRC and SQuAD-like data. In: a data set. Out: a stream of questions.

Each is checked, or one line says what is wrong, in which file, at which id. The form is told by the content.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.tasks.documents import field, items
from bigqa.tasks.entries import Entry, entries

DATA = tr("data file")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its text, and where it starts in the context, in characters."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a context. Questions of one paragraph share the context's string."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    title: str


def iter_questions(path: Path, *, need_answers: bool) -> Iterator[Question]:
    """Yield a data set's questions, one document in memory at a time; without answers are those that have none."""
    seen: dict[str, str] = {}
    has_answers = not need_answers
    for entry in entries(path, DATA):
        question = _question(entry, need_answers)
        if question.id in seen:
            known = tr("{where}: question id {question!r}", where=entry.where, question=question.id)
            raise BigqaError(
                tr("{known} is there twice, first in {seen}; keep one", known=known, seen=seen[question.id])
            )
        seen[question.id] = entry.where
        has_answers = has_answers or bool(question.answers)
        yield question
    if not seen:
        raise BigqaError(tr("{data} holds no question: {path}", data=DATA, path=path))
    if not has_answers:
        raise BigqaError(
            tr("{data} holds no answer, only questions that cannot be answered: {path}", data=DATA, path=path)
        )


def has_impossible(path: Path) -> bool:
    """Say whether a data set has questions that cannot be answered from their context."""
    return any(entry.is_impossible for entry in entries(path, DATA))


def read_questions(path: Path, *, need_answers: bool, limit: int | None = None) -> list[Question]:
    """Return a data set's questions, or the first `limit` of them."""
    return list(islice(iter_questions(path, need_answers=need_answers), limit))


def _question(entry: Entry, need_answers: bool) -> Question:
    held = {} if entry.context is None else {"context": entry.context}
    context = _text(field(held, "context", str, entry.where), "context", entry.where)
    name = _text(entry.id, "id", entry.where)
    where = tr("{where} id {name!r}", where=entry.where, name=name)
    text = _text(field(entry.qa, "question", str, where), "question", where)
    if not any(letter.isprintable() and not letter.isspace() for letter in text):
        raise BigqaError(tr("{where}: the question is empty; write one, or leave the entry out", where=where))
    answers: tuple[Answer, ...] = ()
    if need_answers and not entry.is_impossible:
        answers = tuple(_answers(entry.qa, context, where))
        if not answers:
            raise BigqaError(tr('{where} has no answer; training needs one, or "is_impossible": true', where=where))
    return Question(name, text, context, answers, entry.title)


def _text(text: str, name: str, where: str) -> str:
    """Return text that a tokenizer takes. JSON can spell half of a surrogate pair (\\ud800)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BigqaError(
            tr("{where}: the {name} holds half a surrogate pair; drop it", where=where, name=name)
        ) from None
    return text


def _answers(qa: dict[str, Any], context: str, where: str) -> Iterator[Answer]:
    # One object in 2.x, a list in 1.0.
    entries = [(field(qa, "answer", dict, where), where)] if "answer" in qa else items(qa, "answers", where)
    for entry, entry_where in entries:
        text = field(entry, "text", str, entry_where)
        start = field(entry, "answer_start", int, entry_where)
        if not text or context[max(0, start) : start + len(text)] != text:
            raise BigqaError(
                tr(
                    "{where}: the answer {short} is not in its context at {start}; {hint}",
                    where=where,
                    short=_short(text),
                    start=start,
                    hint=_hint(context, text),
                )
            )
        yield Answer(text, start)


def _hint(context: str, text: str) -> str:
    found = context.find(text) if text else -1
    if found >= 0:
        return tr("it is at {found}", found=found)
    if text and unicodedata.normalize("NFC", text) in unicodedata.normalize("NFC", context):
        forms = tr(
            "the answer in {theirs} and the context in {ours}",
            theirs=_form_of(text),
            ours=_form_of(context),
        )
        return tr("it is there in another Unicode form, {forms}: bring both to NFC", forms=forms)
    if text and unicodedata.normalize("NFKC", text) in unicodedata.normalize("NFKC", context):
        return tr(
            "it is there in signs of the same meaning (blanks that do not break, wide letters): bring both to NFKC"
        )
    bare = text.strip()
    return tr("it is there without the blanks around it") if bare and bare in context else tr("it is nowhere in it")


def _form_of(text: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, text)), tr("a mixed form"))


def _short(text: str, size: int = 40) -> str:
    return repr(text if len(text) <= size else text[:size] + "…")
