"""What the processes of a run tell of themselves, as they do it. In: facts. Out: a file of lines, each whole.

It lies outside of the run's folder, is opened before anything breaks, and each line is one write at the file's end.
"""

import json
import os
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


class Log:
    """A file that many processes write into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def tell(self, what: str, **facts: Any) -> None:
        """Write a line."""
        line = json.dumps({"what": what, "pid": os.getpid(), "rank": int(os.environ.get("RANK", "0"))} | facts)
        os.write(self._file, line.encode() + b"\n")

    def read(self, what: str | None = None) -> list[Fact]:
        """Return the lines so far, or those of a kind."""
        facts = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [fact for fact in facts if what in (None, fact["what"])]

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)
