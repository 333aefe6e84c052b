"""Questions of KorQuAD 1.0 and SQuAD-like JSON files. In: a path. Out: questions, each checked; or one line that says
what is wrong, in which file, at which id."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.files import read_json


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


def read_questions(path: Path, *, need_answers: bool, limit: int | None = None) -> list[Question]:
    """Return a file's questions, or the first `limit` of them."""
    document = read_json(path, "the data file")
    questions: list[Question] = []
    seen: set[str] = set()
    for question in _questions(document, path, need_answers):
        if question.id in seen:
            raise BigqaError(f"{path}: the id {question.id!r} occurs twice; ids must be unique")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise BigqaError(f"{path} has no questions")
    return questions[:limit]


def _questions(document: Any, path: Path, need_answers: bool) -> Iterator[Question]:
    for number, article in enumerate(_list(document, "data", path, "the document")):
        title = article.get("title", "") if isinstance(article, dict) else ""
        for paragraph in _list(article, "paragraphs", path, f"data[{number}]"):
            where = f"data[{number}] {title!r}"
            context = _text(paragraph, "context", path, where)
            for qa in _list(paragraph, "qas", path, where):
                yield _question(qa, context, str(title), path, where, need_answers)


def _question(qa: Any, context: str, title: str, path: Path, where: str, need_answers: bool) -> Question:
    name = _text(qa, "id", path, where)
    text = _text(qa, "question", path, f"id {name!r}")
    if not text.strip():
        raise BigqaError(f"{path}: id {name!r} has an empty question")
    entries = _list(qa, "answers", path, f"id {name!r}") if need_answers or "answers" in qa else []
    answers = tuple(_answer(entry, context, path, name) for entry in entries) if need_answers else ()
    if need_answers and not answers:
        raise BigqaError(f"{path}: id {name!r} has no answer; training and scoring need one")
    return Question(name, text, context, answers, title)


def _answer(entry: Any, context: str, path: Path, name: str) -> Answer:
    text = _text(entry, "text", path, f"an answer of id {name!r}")
    start = entry.get("answer_start")
    if not isinstance(start, int) or not text:
        raise BigqaError(f"{path}: id {name!r}: an answer needs a text and a whole number answer_start")
    if start < 0 or context[start : start + len(text)] != text:
        found = context.find(text)
        hint = f"it is at {found}" if found >= 0 else "it is nowhere in the context"
        raise BigqaError(f"{path}: id {name!r}: the answer {text!r} is not in its context at {start}; {hint}")
    return Answer(text, start)


def _list(parent: Any, name: str, path: Path, where: str) -> list[Any]:
    value = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(value, list):
        raise BigqaError(f'{path} is not in KorQuAD or SQuAD form: {where} has no list "{name}"')
    return value


def _text(parent: Any, name: str, path: Path, where: str) -> str:
    value = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(value, str):
        raise BigqaError(f'{path} is not in KorQuAD or SQuAD form: {where} has no text "{name}"')
    return value
