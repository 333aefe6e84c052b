"""What the host reads back from a device that computed nothing. In: the null GPU's calls. Out: what, where, how often.

A single byte is the answer to a question (`mask.all()`, `a == b`): no, unless the place is one of those to hear yes.
"""

import ctypes
import sys
from typing import Any

from bigqa_rehearsal.places import stack_of

SMALL = 64
"""Bytes: more than that is data, not a number to decide by."""
ANSWER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)
PINNED, MANAGED = 2, 4
"""Of `null_kind`."""


class Reads:
    """Counts reads by place."""

    def __init__(self, true: list[str], known: list[str]) -> None:
        self.true = true
        self.known = known
        """Places that a real GPU is known to answer yes: nobody needs to be told of them."""
        self.by_place: dict[tuple[int, str, int], dict[str, Any]] = {}
        self.library: Any = None
        self.answer = ANSWER(self._read)

    def start(self) -> None:
        """Be asked from now on."""
        self.library = ctypes.CDLL("libcuda.so.1")
        for name in ("null_most", "null_most_of"):
            getattr(self.library, name).restype = ctypes.c_size_t
        self.library.null_on_read(self.answer)

    def stop(self) -> None:
        """Be asked no more: the interpreter may be about to end."""
        self.library.null_on_read(None)

    def _read(self, size: int) -> int:
        if size > SMALL:
            return 0
        frame = sys._getframe(1) if hasattr(sys, "_getframe") else None
        key = (size, frame.f_code.co_filename, frame.f_lineno) if frame else (size, "", 0)
        known = self.by_place.get(key)
        if known is None:
            stack = stack_of(frame)
            is_known = size == 1 and any(_is_at(place, self.known) for place in stack)
            yes = is_known or (size == 1 and any(_is_at(place, self.true) for place in stack))
            known = {"size": size, "times": 0, "answer": int(yes), "is_known": is_known, "stack": stack}
            self.by_place[key] = known
        known["times"] += 1
        return int(known["answer"])

    def found(self) -> list[dict[str, Any]]:
        """Return the reads, questions first."""
        told = [read for read in self.by_place.values() if not read["is_known"]]
        return sorted(told, key=lambda read: (read["size"] != 1, -read["times"]))

    def most_used(self, device: int) -> int:
        """Return the most that was ever used of a device, with its context."""
        return int(self.library.null_most(device))

    def most_pinned(self) -> int:
        """Return the most pinned memory that there was."""
        return int(self.library.null_most_of(PINNED))

    def most_managed(self) -> int:
        """Return the most managed memory that there was."""
        return int(self.library.null_most_of(MANAGED))


def _is_at(place: dict[str, Any], names: list[str]) -> bool:
    at = f"{place['file']}:{place['line']}"
    return any(name == "all" or at == name or at.endswith(f"/{name}") for name in names)
