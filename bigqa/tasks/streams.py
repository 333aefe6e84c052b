"""Texts asked of a model as they come. In: texts, or lines. Out: each with what the model says, in order.

Files larger than memory pass through: so many texts are held at once and no more. Of lines, those that are there are
asked together: one that comes alone is answered at once, and many at the speed of a file.
"""

import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from queue import Empty, Queue
from typing import Any

from bigqa.tasks.base import Array, Ask
from bigqa.tasks.rows import Rows
from bigqa.tasks.sequences import Text, encoded, tokens_of

HELD = 2048
"""Texts held at once."""


def asked_in_turn(
    texts: Iterable[Text], tokenizer: Any, seq_len: int, ask: Ask, task: Any
) -> Iterator[tuple[Text, Array]]:
    """Yield each text with the logits of its window."""
    remaining = iter(texts)
    bursts = iter(lambda: list(islice(remaining, HELD)), [])
    yield from asked_in_bursts(bursts, tokenizer, seq_len, ask, task)


def asked_in_bursts(
    bursts: Iterable[list[Text]], tokenizer: Any, seq_len: int, ask: Ask, task: Any
) -> Iterator[tuple[Text, Array]]:
    """As `asked_in_turn`, of texts that come several at once."""
    for held in bursts:
        columns = [tokens_of(encoding) for encoding in encoded(held, tokenizer, seq_len)]
        rows = Rows.of_columns({name: [one[name] for one in columns] for name in columns[0]})
        for text, (_, logits) in zip(held, ask(task, rows, rows.lengths("input_ids")), strict=True):
            yield text, logits


def bursts_of(lines: Iterator[str]) -> Iterator[list[str]]:
    """Yield the lines that have come since the last ones were taken: at least one, and at most so many."""
    come: Queue[str | BaseException | None] = Queue(maxsize=2 * HELD)

    def read() -> None:
        try:
            for line in lines:
                come.put(line)
            come.put(None)
        except BaseException as error:  # told where the lines are wanted
            come.put(error)

    threading.Thread(target=read, daemon=True, name="bigqa-lines").start()
    while True:
        held, end = _taken(come)
        if held:
            yield held
        if isinstance(end, BaseException):
            raise end
        if end is not ...:
            return


def _taken(come: "Queue[str | BaseException | None]") -> tuple[list[str], Any]:
    """Return the lines that are there, and what ended them, if anything did."""
    held: list[str] = []
    while len(held) < HELD:
        try:
            one = come.get(block=not held)
        except Empty:
            break
        if not isinstance(one, str):
            return held, one
        held.append(one)
    return held, ...


def as_texts(lines: Iterator[str], *, pairs: bool) -> Iterator[list[Text]]:
    """Yield lines as they come, as texts; of pairs, a tab parts the two."""
    for held in bursts_of(lines):
        yield [(first, second) if pairs else line for line in held for first, _, second in [line.partition("\t")]]


def one_line(text: str) -> str:
    """Return a text without what would end a line, or a column of it."""
    return " ".join(text.split()) if any(one in text for one in "\t\r\n") else text
