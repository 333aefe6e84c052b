"""Questions of KorQuAD 1.0, KorQuAD 2.x and SQuAD-like data. In: a JSON file; for 2.x also a zip, or a folder of them.

Out: a stream of questions, each checked; or one line that says what is wrong, in which file, at which id. The form is
told by the content: 1.0 has paragraphs, 2.x has one HTML document per article.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.tasks.documents import documents, field, items

DATA = "data file"


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
    """Yield a data set's questions, one document in memory at a time."""
    seen: dict[str, str] = {}
    for document, document_where in documents(path, DATA):
        for article, article_where in items(document, "data", document_where):
            for question, where in _of_article(article, article_where, need_answers):
                if question.id in seen:
                    raise BigqaError(
                        f"{where}: question id {question.id!r} is there twice, first in {seen[question.id]}; keep one"
                    )
                seen[question.id] = where
                yield question
    if not seen:
        raise BigqaError(f"{DATA} holds no question: {path}")


def read_questions(path: Path, *, need_answers: bool, limit: int | None = None) -> list[Question]:
    """Return a data set's questions, or the first `limit` of them."""
    return list(islice(iter_questions(path, need_answers=need_answers), limit))


def _of_article(article: Any, where: str, need_answers: bool) -> Iterator[tuple[Question, str]]:
    title = article.get("title", "") if isinstance(article, dict) else ""
    is_document = isinstance(article, dict) and "paragraphs" not in article and "qas" in article
    parts = [(article, where)] if is_document else items(article, "paragraphs", where)
    for part, part_where in parts:
        context = field(part, "context", str, part_where)
        for qa, qa_where in items(part, "qas", part_where):
            yield _question(qa, context, str(title), qa_where, need_answers), qa_where


def _question(qa: Any, context: str, title: str, where: str, need_answers: bool) -> Question:
    name = field(qa, "id", str, where)
    where = f"{where} id {name!r}"
    text = field(qa, "question", str, where)
    if not text.strip():
        raise BigqaError(f"{where}: the question is empty; write one, or leave the entry out")
    answers = tuple(_answers(qa, context, where)) if need_answers else ()
    if need_answers and not answers:
        raise BigqaError(f"{where} has no answer; training needs one for each question")
    return Question(name, text, context, answers, title)


def _answers(qa: dict[str, Any], context: str, where: str) -> Iterator[Answer]:
    # One object in 2.x, a list in 1.0.
    entries = [(qa["answer"], where)] if "answer" in qa else items(qa, "answers", where)
    for entry, entry_where in entries:
        text = field(entry, "text", str, entry_where)
        start = field(entry, "answer_start", int, entry_where)
        if not text or context[max(0, start) : start + len(text)] != text:
            raise BigqaError(
                f"{where}: the answer {_short(text)} is not in its context at {start}; {_hint(context, text)}"
            )
        yield Answer(text, start)


def _hint(context: str, text: str) -> str:
    found = context.find(text) if text else -1
    return f"it is at {found}" if found >= 0 else "it is nowhere in it"


def _short(text: str, size: int = 40) -> str:
    return repr(text if len(text) <= size else text[:size] + "…")
