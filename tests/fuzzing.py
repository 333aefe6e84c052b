"""Bad input by the hundred: files of each kind that bigqa reads, spoiled, and what reads them.

A *base* is a whole file; a *spoiling* is what hypothesis draws: a value in the place of another one, a key gone or
twice, bytes cut, turned or put in. A reader either takes what it gets or raises a `BigqaError` in one line, within
`LIMIT_S`, and writes nothing. All within one process: it is what a command calls, without its seconds of start.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bigqa.errors import LONGEST_LINE, BigqaError

LIMIT_S = 10.0
"""Of processor time: on a busy machine the clock says nothing."""
Spoiling = tuple[str, int, Any]
"""What is done, where (a number that is taken modulo the places there are), and with what."""

Read = Callable[[Any, list[Spoiling], Path], Callable[[], object]]
"""From a kind's bases, a choice among them with its spoilings, and an empty folder to what reads it."""
Kind = tuple[Read, st.SearchStrategy[list[Spoiling]]]

DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "0", "1.5", "nan", "가", "\u1100\u1161", "\ud800", "\0", "a\nb", "../..", "/", "~", "auto", "cuda",
    "x" * 3000, [], {}, [None], [0], [[]], {"a": 1}, {"": ""}, ["가", "나"], [1, "a", None], DEEP,
]  # fmt: skip
"""What stands where something else should."""
BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"{",
    b"]",
    b'"',
    b",",
    "가".encode(),
    "가".encode("cp949"),
    b"\x80\x04",
    b"null",
]


def spoilings(most: int = 3) -> st.SearchStrategy[list[Spoiling]]:
    """Draw one to `most` spoilings of a JSON value."""
    value = st.sampled_from(range(len(VALUES)))
    kinds = st.sampled_from(["set", "set", "set", "drop", "add", "wrap", "repeat"])
    return st.lists(st.tuples(kinds, st.integers(0, 10**6), value), min_size=1, max_size=most)


def damages(most: int = 3) -> st.SearchStrategy[list[Spoiling]]:
    """Draw one to `most` damages of bytes."""
    kinds = st.sampled_from(["cut", "turn", "insert", "zero", "swap"])
    return st.lists(st.tuples(kinds, st.integers(0, 10**9), st.integers(0, 10**6)), min_size=1, max_size=most)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all that is within a JSON value, and of itself."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:8]):
            yield from places(item, (*path, index))


def spoiled(value: Any, drawn: list[Spoiling]) -> Any:
    """Return a JSON value with something else in some places."""
    value = copy.deepcopy(value)
    for kind, where, what in drawn:
        paths = list(places(value))
        path = paths[where % len(paths)]
        new = copy.deepcopy(VALUES[what])
        if not path:
            value = new if kind == "set" and what % 3 == 0 else [value] if kind == "wrap" else value
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        _change(holder, path[-1], kind, new)
    return value


def _change(holder: Any, key: Any, kind: str, new: Any) -> None:
    if kind == "drop":
        del holder[key]
    elif kind == "add" and isinstance(holder, dict):
        holder[new if isinstance(new, str) else f"{key}_"] = new
    elif kind == "wrap":
        holder[key] = [holder[key]]
    elif kind == "repeat" and isinstance(holder[key], list):
        holder[key] = holder[key] * 2
    else:
        holder[key] = new


def damaged(content: bytes, drawn: list[Spoiling]) -> bytes:
    """Return bytes of which some are gone, others, or more."""
    for kind, where, what in drawn:
        at = where % (len(content) + 1)
        if kind == "cut":
            content = content[:at]
        elif kind == "turn" and at < len(content):
            content = content[:at] + bytes([content[at] ^ (1 << what % 8)]) + content[at + 1 :]
        elif kind == "zero":
            content = content[:at] + b"\0" * min(what % 64, len(content) - at) + content[at + what % 64 :]
        elif kind == "swap":
            content = content[at:] + content[:at]
        else:
            content = content[:at] + BYTES[what % len(BYTES)] + content[at:]
    return content


def dumped(value: Any) -> bytes:
    """Return JSON as other programs write it: NaN and halves of surrogate pairs included."""
    return json.dumps(value).encode()


@dataclass
class Tally:
    """What came of the inputs of one kind."""

    taken: int = 0
    refused: int = 0


def tried(read: Callable[[], object], folder: Path, tally: Tally) -> None:
    """Read something spoiled: it is taken, or refused in one line, in time, and nothing is left behind."""
    before, began = _listing(folder), time.process_time()
    try:
        read()
        tally.taken += 1
    except BigqaError as error:
        tally.refused += 1
        text = str(error)
        assert text.strip() and error.exit_code in (1, 2)
        assert "Traceback" not in text and "\n" not in text and len(text) <= LONGEST_LINE, text
    assert time.process_time() - began < LIMIT_S
    assert _listing(folder) == before


def _listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
