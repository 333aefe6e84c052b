"""A command of bigqa in a process of its own, its lines and its progress shown in the notebook. In: words. Out: a code.

Interrupting the notebook asks it to save and end, as Ctrl-C does; interrupting again ends it at once.
"""

import html
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from bigqa.language import shown, tr

ERROR = "bigqa: "
"""How a line of a command begins that is about an error, or about its end."""
FAILED = (1, 2)
COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
STEP = re.compile(r"^\S+ (\d+)/(\d+) · (.*)")
"""A line of a run's progress, in every language."""


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, and no terminal."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return found is not None and hasattr(found, "kernel")


def environment(*, piped: bool) -> dict[str, str]:
    """Return what a command finds: a kernel asks for colours, and lines with them would be taken for a terminal's."""
    kept = {name: value for name, value in os.environ.items() if not (piped and name in COLOURS)}
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def run(words: Sequence[str], *, quiet: bool = False) -> tuple[int, str, str]:
    """Run `bigqa WORDS`; return its exit code, what it printed, and its last line about an error.

    `quiet`: nothing is shown of it. On a terminal it shows itself.
    """
    command = [sys.executable, "-m", "bigqa.cli", *words]
    piped = quiet or in_notebook()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE if piped else None,
        stderr=subprocess.PIPE,
        env=environment(piped=piped),
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    lines: queue.Queue[tuple[str, str] | None] = queue.Queue()
    readers = [_reading(name, getattr(process, name), lines) for name in ("stdout", "stderr") if getattr(process, name)]
    said: dict[str, list[str]] = {"stdout": [], "stderr": []}
    screen, left = _Screen(quiet=quiet), len(readers)
    asked = False
    while left:
        try:
            item = lines.get()
            if item is None:
                left -= 1
                continue
            said[item[0]].append(item[1])
            if not item[1].startswith(ERROR):
                screen.show(item[1])
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT if asked else signal.SIGTERM)
            asked = True
            screen.show(shown(tr("stopping: the step is finished and saved; interrupt again to end at once")))
    code = process.wait()
    errors = [line for line in said["stderr"] if line.startswith(ERROR)]
    for line in errors if code not in FAILED else ():  # else the caller raises it
        screen.show(line)
    last = errors[-1].removeprefix(ERROR) if errors else (said["stderr"] or [f"ended with {code}"])[-1]
    return code, "\n".join(said["stdout"]), last


def _reading(name: str, stream: Any, lines: "queue.Queue[tuple[str, str] | None]") -> threading.Thread:
    def read() -> None:
        for line in stream:
            lines.put((name, line.rstrip("\n")))
        lines.put(None)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


class _Screen:
    """What a notebook shows of a command: its lines, and one bar that moves in place."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._bar: Any = None

    def show(self, line: str) -> None:
        if self.quiet:
            return
        found = STEP.match(line)
        if found is None or not in_notebook():
            print(line, flush=True)
            return
        from IPython.display import HTML, display

        page = HTML(bar(int(found[1]), int(found[2]), found[3]))
        if self._bar is None:
            self._bar = display(page, display_id=True)
        else:
            self._bar.update(page)


def bar(done: int, total: int, text: str) -> str:
    """Return a bar of progress."""
    return (
        f'<div style="font-family:sans-serif;font-size:13px"><progress value="{done}" max="{total}" '
        f'style="width:18em;vertical-align:middle"></progress> {done:,} / {total:,} · {html.escape(text)}</div>'
    )
