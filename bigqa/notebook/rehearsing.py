"""`bigqa.rehearse(...)`: a training command on a GPU that is not there. In: words, a card. Out: whether it fits."""

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError, UsageError
from bigqa.language import shown, tr
from bigqa.notebook.command import run
from bigqa.notebook.shown import page_frame

DOES_NOT_FIT = 3
PAGE_PX = 720


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal found."""

    record: dict[str, Any]
    """As `bigqa rehearse --json` prints it."""
    page: str
    """As `bigqa rehearse --html` writes it."""

    @property
    def fits(self) -> bool:
        """Whether the command does not run out of memory."""
        return bool(self.record["fits"])

    def __repr__(self) -> str:
        command, card = shlex.join(self.record["command"]), self.record["gpu"]
        answer = tr("fits") if self.fits else tr("does not fit")
        words = {"command": command, "count": self.record["gpus"], "card": card, "answer": answer}
        return shown(tr("{command} on {count} x {card}: {answer}", **words))

    def _repr_html_(self) -> str:
        return page_frame(self.page, PAGE_PX)


def rehearse(command: str | Sequence[str] = (), *, gpu: str = "", **options: Any) -> Rehearsed:
    """Run a training command on a GPU that is not there; three optimizer steps of it.

    `command`: such as "python my_script.py --lr 1e-5"; or none, with plan="plan.json" and train_file=....
    Raises: BigqaError with the line that the command ended with; UsageError.
    """
    words = shlex.split(command) if isinstance(command, str) else list(command)
    if not words and "plan" not in options:
        raise UsageError(tr("no command to rehearse: bigqa.rehearse('python my_script.py', gpu='T4')"))
    given = {"gpu": gpu or None} | options
    named = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    with tempfile.TemporaryDirectory(prefix="bigqa-") as folder:
        page = Path(folder) / "page.html"
        ending = ["--", *words] if words else []
        code, said, error = run(["rehearse", *named, "--json", f"--html={page}", *ending], quiet=True)
        if code not in (0, DOES_NOT_FIT) or not page.is_file():
            raise BigqaError(error)
        return Rehearsed(json.loads(said.splitlines()[-1]), page.read_text(encoding="utf-8"))
