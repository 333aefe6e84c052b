"""Conversations as tokens, and which of them are answers. In: JSON lines, a tokenizer. Out: a stream of rows.

A line has `messages` (the tokenizer's chat template), or `prompt` and `completion`. What is longer than a window is cut
at its end, or left out where that is asked for; where no answer is left of it, it is left out as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.tasks.tables import read_table


@dataclass(frozen=True, slots=True)
class Conversation:
    """A text, and the characters of it that are answers."""

    text: str
    answers: tuple[tuple[int, int], ...]
    where: str


@dataclass(slots=True)
class Told:
    """What became of conversations."""

    all: int = 0
    longer: int = 0
    left_out: int = 0


def read_conversations(file: Path, tokenizer: Any) -> Iterator[Conversation]:
    """Yield a file's conversations. Raises: BigqaError with the row."""
    for row, where in read_table(file):
        if "messages" in row:
            yield _of_messages(row["messages"], tokenizer, where)
        elif "prompt" in row and "completion" in row:
            prompt, completion = _text(row, "prompt", where), _text(row, "completion", where)
            text = prompt + completion
            yield Conversation(text, ((len(prompt), len(text)),), where)
        else:
            raise BigqaError(tr('{where} has neither "messages" nor "prompt" and "completion"', where=where))


def rows_of(
    conversations: Iterator[Conversation], tokenizer: Any, seq_len: int, *, drop: bool, told: Told
) -> Iterator[dict[str, list[int]]]:
    """Yield tokens and which are answers; a text's end is an answer's too. `told` is counted up."""
    end = end_of(tokenizer)
    for one in conversations:
        found = tokenizer.backend_tokenizer.encode(one.text, add_special_tokens=False)
        answer = [int(any(a <= begin < b for a, b in one.answers)) for begin, _ in found.offsets]
        ids = list(found.ids)
        if ids and ids[-1] != end:
            ids, answer = [*ids, end], [*answer, answer[-1]]
        told.all += 1
        told.longer += len(ids) > seq_len
        ids, learned = ids[:seq_len], [0, *answer[1:seq_len]]
        if not any(learned) or (drop and len(answer) > seq_len):
            told.left_out += 1
            continue
        yield {"input_ids": ids, "answer": learned}


def end_of(tokenizer: Any) -> int:
    """Return the token that ends a text. Raises: BigqaError where there is none."""
    for found in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if found is not None:
            return int(found)
    raise BigqaError(tr("this tokenizer has no token that ends a text (eos_token): name another"))


def rendered(messages: Any, tokenizer: Any, where: str, *, to_answer: bool) -> str:
    """Return messages as the tokenizer's chat template writes them. Raises: BigqaError where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        raise BigqaError(
            tr(
                '{where}: this tokenizer has no chat template for "messages"; give "prompt" and "completion"',
                where=where,
            )
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=to_answer))
    except Exception as error:  # a template is a program of its own
        raise BigqaError(
            tr(
                "{where}: the chat template refuses these messages: {problem}",
                where=where,
                problem=str(error).splitlines()[0],
            )
        ) from None


def _of_messages(messages: Any, tokenizer: Any, where: str) -> Conversation:
    if not isinstance(messages, list) or not all(isinstance(one, dict) and "role" in one for one in messages):
        raise BigqaError(tr('{where}: "messages" is no list of {{role, content}}', where=where))
    text, answers = rendered(messages, tokenizer, where, to_answer=False), []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(messages[:index], tokenizer, where, to_answer=True)
        after = rendered(messages[: index + 1], tokenizer, where, to_answer=False)
        if not after.startswith(before) or not text.startswith(after):
            raise BigqaError(
                tr("{where}: the chat template writes earlier messages otherwise when later ones come", where=where)
            )
        answers.append((len(before), len(after)))
    if not answers:
        raise BigqaError(tr("{where}: no message is the assistant's: nothing to learn", where=where))
    return Conversation(text, tuple(answers), where)


def _text(row: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(row[name], str) or not row[name]:
        raise BigqaError(
            tr(
                "{where}: {name!r} is {found}, not text",
                where=where,
                name=name,
                found=type(row[name]).__name__ if row[name] else tr("empty"),
            )
        )
    return str(row[name])
